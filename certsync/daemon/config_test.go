package daemon

import (
	"path"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatusConfigPath(t *testing.T) {
	for _, tc := range []struct {
		from, info, want string
		ok               bool
	}{
		{"containerd 1", `{"containerd":{},"registry":{"configPath":"/etc/containerd/certs.d","mirrors":null},"sandboxImage":"x"}`, "/etc/containerd/certs.d", true},
		{"containerd 1 without one", `{"registry":{"configPath":"","mirrors":null}}`, "", true},
		{"containerd 2", `{"containerd":{},"cni":{},"containerdRootDir":"/var/lib/containerd"}`, "", false},
		{"an old one", `{"registry":{"mirrors":null}}`, "", false},
		{"nothing", ``, "", false},
		{"no object", `[]`, "", false},
		{"another type", `{"registry":{"configPath":3}}`, "", false},
	} {
		if got, ok := statusConfigPath(tc.info); got != tc.want || ok != tc.ok {
			t.Errorf("%s: %q, %v", tc.from, got, ok)
		}
	}
}

const (
	configV1 = "[plugins.cri.registry]\nconfig_path = \"/one\"\n"
	configV2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"
	configV3 = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/three'\n[plugins.'io.containerd.grpc.v1.cri']\n  disable_tcp_service = true\n"
)

func TestFileConfigPath(t *testing.T) {
	for _, tc := range []struct{ from, file, want string }{
		{"version 1", configV1, "/one"},
		{"version 2", configV2, "/etc/containerd/certs.d:/etc/docker/certs.d"},
		{"version 3", configV3, "/three"},
		{"none", "version = 2\n", ""},
		{"empty", "", ""},
		{"dotted", `plugins."io.containerd.grpc.v1.cri".registry.config_path = "/x"`, "/x"},
	} {
		if got, err := fileConfigPath([]byte(tc.file)); got != tc.want || err != nil {
			t.Errorf("%s: %q, %v", tc.from, got, err)
		}
	}
	for _, file := range []string{"version = ", "[plugins.cri.registry]\nconfig_path = 3", "\x00", "plugins = 3"} {
		if got, err := fileConfigPath([]byte(file)); err == nil {
			t.Errorf("%q was taken: %q", file, got)
		}
	}
}

func TestCertDirs(t *testing.T) {
	for configPath, want := range map[string][]string{
		"":                           nil,
		"/etc/containerd/certs.d":    {"/etc/containerd/certs.d"},
		"/a:/b/":                     {"/a", "/b"},
		":/a::":                      {"/a"},
		"certs.d":                    nil,
		"certs.d:/a":                 {"/a"},
		"/etc/../../etc/docker/./c/": {"/etc/docker/c"},
	} {
		if diff := cmp.Diff(want, certDirs(configPath)); diff != "" {
			t.Errorf("%q (-want +got)\n%s", configPath, diff)
		}
	}
}

func FuzzConfig(f *testing.F) {
	for _, s := range []string{configV1, configV2, configV3, `{"registry":{"configPath":"/a:/b"}}`, ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fromFile, _ := fileConfigPath(b)
		fromStatus, _ := statusConfigPath(string(b))
		for _, configPath := range []string{fromFile, fromStatus, string(b)} {
			for _, dir := range certDirs(configPath) {
				if !path.IsAbs(dir) || path.Clean(dir) != dir {
					t.Errorf("%q gives %q", configPath, dir)
				}
			}
		}
	})
}
