package place

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodestead/nodestead/certsync/host"
)

// hostsFile is the file by which containerd, and a dockerd with containerd's image
// store, is told about a registry. When it has anything in it that can be
// decoded, the .crt files beside it do not count.
//
// containerd: core/remotes/docker/config, loadHostDir.
const hostsFile = "hosts.toml"

// hostsTOML is what matters of it.
type hostsTOML struct {
	there bool
	// broken: it cannot be decoded; then containerd reads the .crt files.
	broken string
	empty  bool
	// hostless: it has no table of hosts. Before 2.0 containerd takes such a one
	// for broken (late releases of 1.7 do not).
	hostless bool
	// names: our file is one of the files of certificates that it names; files
	// are the others.
	names bool
	files []file
}

// counts tells whether containerd goes by it, and not by the .crt files; of a
// hostless one, only a newer containerd does.
func (t hostsTOML) counts() bool { return t.there && t.broken == "" && !t.empty }

func readHostsTOML(h *host.Host, dir string) hostsTOML {
	content, err := h.ReadFile(path.Join(dir, hostsFile), maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist): // a link to nothing
		return hostsTOML{there: true, empty: true}
	case err != nil:
		return hostsTOML{there: true, broken: err.Error()}
	}
	t := hostsTOML{there: true, empty: len(content) == 0}
	ca, hostless, err := caFiles(content)
	if err != nil {
		t.broken = err.Error()
		return t
	}
	t.hostless = hostless
	for _, name := range ca {
		if !path.IsAbs(name) {
			name = path.Join(dir, name)
		}
		if name = path.Clean(name); name == path.Join(dir, certsFile) {
			t.names = true
			continue
		}
		t.files = append(t.files, readAnchors(h, entry{path: name}, false))
	}
	return t
}

// caFiles are the files of certificates that a hosts.toml names: of the registry
// itself, and of the hosts that stand for it. hostless: it has no table of those.
func caFiles(content []byte) (names []string, hostless bool, err error) {
	var config map[string]any
	if err := toml.Unmarshal(content, &config); err != nil {
		return nil, false, err
	}
	names = texts(config["ca"])
	if config["host"] == nil {
		return names, true, nil
	}
	hosts, ok := config["host"].(map[string]any)
	if !ok {
		return nil, false, errors.New("host is no table")
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		host, ok := hosts[name].(map[string]any)
		if !ok {
			return nil, false, fmt.Errorf("host %q is no table", name)
		}
		names = append(names, texts(host["ca"])...)
	}
	return names, false, nil
}

// texts are the texts of a value that is one or several.
func texts(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var all []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}
