package place

// Blocked says what keeps the anchors from working at the target although there
// is nothing to do, "" if nothing does. Other problems only surround it.
func (p Plan) Blocked() string {
	for _, problem := range p.Problems {
		switch problem.Reason {
		case "unsafe_directory", "unsafe_file", "would_be_hidden", "foreign_hosts_toml", "anchors_elsewhere", "read_only", "tool_did_not_help", "would_publish_key":
			return problem.Reason + ": " + problem.Path + ": " + problem.Detail
		}
	}
	return ""
}
