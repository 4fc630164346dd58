package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodestead/nodestead/certsync/host"
)

// containerdFile is where containerd has its configuration, unless its unit
// says otherwise.
const containerdFile = "/etc/containerd/config.toml"

// setConfigPath is what an operator has to do for certs.d.
const setConfigPath = `set config_path = "/etc/containerd/certs.d" in ` + containerdFile +
	`, under [plugins."io.containerd.grpc.v1.cri".registry] (containerd 1) or ` +
	`[plugins."io.containerd.cri.v1.images".registry] (containerd 2), and restart it once`

// dockerFile is where docker has its configuration, unless its unit says
// otherwise.
const dockerFile = "/etc/docker/daemon.json"

// brokenConfig says why a daemon could not read its configuration file any more,
// "" if it could, as far as its form goes: with one that was broken after its
// start a restart would be its end.
func brokenConfig(h *host.Host, name Name) string {
	file, parse := containerdFile, toml.Unmarshal
	switch name {
	case Docker:
		file, parse = dockerFile, json.Unmarshal
	case CRIO:
		return ""
	}
	content, err := h.ReadFile(file, maxAnswer)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err == nil {
		var values map[string]any
		err = parse(content, &values)
	}
	if err != nil {
		return fmt.Sprintf("%s: %v", file, err)
	}
	return ""
}

// statusConfigPath reads config_path from the configuration that containerd 1
// adds to its CRI status. containerd 2 does not say it there: ok is false.
func statusConfigPath(info string) (configPath string, ok bool) {
	var v struct {
		Registry *struct {
			ConfigPath *string `json:"configPath"`
		} `json:"registry"`
	}
	if json.Unmarshal([]byte(info), &v) != nil || v.Registry == nil || v.Registry.ConfigPath == nil {
		return "", false
	}
	return *v.Registry.ConfigPath, true
}

// fileConfigPath reads config_path from containerd's configuration file: those
// of version 1 and 2 have it with the plugin that does all of CRI, those of version
// 3 with the one for images.
func fileConfigPath(file []byte) (string, error) {
	type plugin struct {
		Registry struct {
			ConfigPath string `toml:"config_path"`
		} `toml:"registry"`
	}
	var v struct {
		Plugins struct {
			Images plugin `toml:"io.containerd.cri.v1.images"`
			CRI    plugin `toml:"io.containerd.grpc.v1.cri"`
			Old    plugin `toml:"cri"`
		} `toml:"plugins"`
	}
	if err := toml.Unmarshal(file, &v); err != nil {
		return "", fmt.Errorf("parse: %w", err)
	}
	for _, p := range []plugin{v.Plugins.Images, v.Plugins.CRI, v.Plugins.Old} {
		if p.Registry.ConfigPath != "" {
			return p.Registry.ConfigPath, nil
		}
	}
	return "", nil
}

// certDirs splits a config_path. What is not absolute is relative to a directory
// that is not known here, and is left out.
func certDirs(configPath string) []string {
	var dirs []string
	for dir := range strings.SplitSeq(configPath, ":") {
		if path.IsAbs(dir) {
			dirs = append(dirs, path.Clean(dir))
		}
	}
	return dirs
}
