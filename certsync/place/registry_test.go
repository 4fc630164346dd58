package place

import (
	"path"
	"strings"
	"testing"
)

func TestCheckRegistry(t *testing.T) {
	for _, good := range []string{
		"registry.example.org", "registry.example.org:5000", "registry:5000", "localhost", "localhost:5000", "10.0.0.1", "10.0.0.1:443",
		"Registry.Example.org:5000", "a-b.example.org:1", "x:65535", "[fd00::1]:5000", "[fd00::1]", "[::]:1", "xn--bcher-kva.example.org",
		strings.Repeat("a", 63) + ".example.org", "docker.io",
	} {
		if err := CheckRegistry(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"", " ", ".", "..", "/", "../..:5000", "..:5000", ".:5000", "a/b:5000", "/etc", "registry.example.org/", "registry.example.org/path:5000",
		"https://registry.example.org", "registry.example.org:", "registry.example.org:0", "registry.example.org:65536", "registry.example.org:-1",
		"registry.example.org:+1", "registry.example.org:05000", "registry.example.org:http", "registry.example.org:5000:5000", "registry",
		"_default", "registry_5000_", "a_b.example.org:5000", ".example.org", "example.org.", "a..b:5000", "-a.example.org", "a-.example.org",
		"fd00::1", "fd00::1:5000", "[fd00::1", "[fd00::1]5000", "[fd00::1]:", "[fd00::1%eth0]:5000", "[10.0.0.1]:5000", "[::ffff:10.0.0.1]:5000",
		"[]:5000", "[..]:5000", "a\x00.example.org", "a\n.example.org", "ä.example.org", `a\b:5000`, "user@registry.example.org", "*.example.org",
		strings.Repeat("a", 64) + ".example.org", strings.Repeat("a.", 127) + "aa",
	} {
		if err := CheckRegistry(bad); err == nil {
			t.Errorf("%q is taken", bad)
		} else if !strings.HasPrefix(err.Error(), "registry ") {
			t.Errorf("%q: the error does not name it: %v", bad, err)
		}
	}
}

// FuzzCheckRegistry: what passes is one element of a path that leads nowhere
// else, in each spelling that runtimes have for it.
func FuzzCheckRegistry(f *testing.F) {
	for _, seed := range []string{"registry.example.org:5000", "[fd00::1]:5000", "../..:5000", "localhost", "a\x00:1", "[", ":", "a:1:2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, registry string) {
		if CheckRegistry(registry) != nil {
			return
		}
		for _, runtime := range []string{"docker", "containerd", "crio"} {
			for _, dir := range NewCerts(nil, runtime, "/etc/certs.d", registry).dirs() {
				if base := path.Base(dir); path.Join("/etc/certs.d", base) != dir || strings.ContainsAny(base, "/\x00") ||
					base == "." || base == ".." || len(base) > 255 || path.Clean(dir) != dir {
					t.Errorf("%s: %q leads to %q", runtime, registry, dir)
				}
			}
		}
		host, port, err := splitRegistry(registry)
		if err != nil || port != "" && host+":"+port != registry || port == "" && host != registry {
			t.Errorf("%q is split into %q and %q: %v", registry, host, port, err)
		}
	})
}
