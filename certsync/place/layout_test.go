package place

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// systems are emulated: no more than the files by which a system is known, as they
// are on the real ones.
var systems = []struct {
	name, release string
	files         []string
	layout, tool  string // empty layout: refused
}{
	{"Debian 12", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		[]string{"/usr/sbin/update-ca-certificates", "/usr/share/ca-certificates", "/usr/bin/trust"}, "Debian", "/usr/sbin/update-ca-certificates"},
	{"Ubuntu 24.04", "ID=ubuntu\nID_LIKE=debian\n",
		[]string{"/usr/sbin/update-ca-certificates", "/usr/share/ca-certificates"}, "Debian", "/usr/sbin/update-ca-certificates"},
	{"Debian without ca-certificates", "ID=debian\n", nil, "", ""},
	{"Alpine 3.20", "ID=alpine\n", []string{"/usr/sbin/update-ca-certificates", "/usr/share/ca-certificates"}, "Alpine", "/usr/sbin/update-ca-certificates"},
	{"RHEL 9", "ID=\"rhel\"\nID_LIKE=\"fedora\"\n", []string{"/usr/bin/update-ca-trust", "/etc/pki/ca-trust/source", "/usr/bin/trust"}, "RHEL", "/usr/bin/update-ca-trust"},
	{"Rocky 9", "ID=rocky\nID_LIKE='rhel centos fedora'\n", []string{"/usr/bin/update-ca-trust", "/etc/pki/ca-trust/source"}, "RHEL", "/usr/bin/update-ca-trust"},
	{"Amazon Linux 2023", "ID=amzn\nID_LIKE=fedora\n", []string{"/usr/bin/update-ca-trust", "/etc/pki/ca-trust/source"}, "RHEL", "/usr/bin/update-ca-trust"},
	{"Fedora CoreOS", "ID=fedora\nVARIANT_ID=coreos\n", []string{"/usr/bin/update-ca-trust", "/etc/pki/ca-trust/source"}, "RHEL", "/usr/bin/update-ca-trust"},
	{"a Debian with p11-kit's directories", "ID=debian\n", []string{"/usr/sbin/update-ca-certificates", "/usr/share/ca-certificates",
		"/usr/bin/update-ca-trust", "/etc/pki/ca-trust/source"}, "Debian", "/usr/sbin/update-ca-certificates"},
	{"SLES 15", "ID=\"sles\"\nID_LIKE=\"suse\"\n", []string{"/usr/sbin/update-ca-certificates", "/etc/pki/trust", "/usr/bin/trust", "/usr/share/ca-certificates"},
		"SUSE", "/usr/sbin/update-ca-certificates"},
	{"openSUSE Leap", "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", []string{"/usr/sbin/update-ca-certificates", "/etc/pki/trust"}, "SUSE", "/usr/sbin/update-ca-certificates"},
	{"Arch", "ID=arch\n", []string{"/usr/bin/trust", "/usr/bin/update-ca-trust", "/etc/ca-certificates/trust-source"}, "Arch", "/usr/bin/trust"},
	{"Flatcar", "ID=flatcar\nID_LIKE=coreos\n", []string{"/usr/sbin/update-ca-certificates", "/etc/ssl/certs", "/usr/share/ca-certificates"},
		"Flatcar", "/usr/sbin/update-ca-certificates"},
	{"Garden Linux", "ID=gardenlinux\nID_LIKE=debian\n", []string{"/usr/sbin/update-ca-certificates", "/etc/ssl/certs", "/usr/share/ca-certificates"},
		"Garden Linux", "/usr/sbin/update-ca-certificates"},
	{"one that is known by what is there", "ID=homegrown\n", []string{"/usr/bin/update-ca-trust", "/etc/pki/ca-trust/source"}, "RHEL", "/usr/bin/update-ca-trust"},
	{"one that says nothing of itself", "", []string{"/usr/sbin/update-ca-certificates", "/usr/share/ca-certificates"}, "Debian", "/usr/sbin/update-ca-certificates"},
	{"Talos", "ID=talos\nPRETTY_NAME=\"Talos (v1.10.0)\"\n", []string{"/etc/ssl/certs"}, "", ""},
	{"Bottlerocket", "ID=bottlerocket\n", []string{"/etc/pki/ca-trust/source", "/usr/bin/update-ca-trust"}, "", ""},
	{"COS", "ID=cos\n", []string{"/usr/share/ca-certificates", "/usr/sbin/update-ca-certificates"}, "", ""},
	{"NixOS", "ID=nixos\n", []string{"/etc/ssl/certs"}, "", ""},
}

func TestFindStore(t *testing.T) {
	for _, tt := range systems {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"etc/": ""}
			if tt.release != "" { // mostly a link
				files["usr/lib/os-release"] = tt.release
				files["etc/os-release"] = "->../usr/lib/os-release"
			}
			for _, name := range tt.files {
				if strings.Contains(name, "bin/") {
					files[name] = "#!/bin/sh\n"
				} else {
					files[name+"/"] = ""
				}
			}
			h, _ := newHost(t, files)
			s, err := FindStore(h)
			if tt.layout == "" {
				unsupported, ok := errors.AsType[*UnsupportedError](err)
				if !ok {
					t.Fatalf("it gives %v", err)
				}
				if unsupported.Host == "" || !strings.Contains(unsupported.Remedy, "certs.d") || unsupported.Problem().Reason != "unsupported_host" {
					t.Errorf("the error is %+v", unsupported)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Layout() != tt.layout || s.tool != tt.tool {
				t.Errorf("it is %s with %s", s.Layout(), s.tool)
			}
		})
	}
}

func TestParseOSRelease(t *testing.T) {
	got := parseOSRelease([]byte("# comment\n\nNAME=x\nID_LIKE=\"rhel  Fedora\"\r\nID='Rocky'\nPRETTY_NAME=\"Rocky Linux 9\"\nnothing\n"))
	want := osRelease{pretty: "Rocky Linux 9", ids: []string{"rocky", "rhel", "fedora"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(osRelease{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzParse: parsers of files that others write do not fail, and hand on no path
// out of what they are given.
func FuzzParse(f *testing.F) {
	f.Add([]byte("ID=debian\nID_LIKE=\"a b\"\n"))
	f.Add([]byte("# comment\n!mozilla/no.crt\nmozilla/yes.crt\n\n../../x.crt"))
	f.Add([]byte("host = 1\n[ca]\n"))
	f.Add([]byte("ca = [\"a\", 1]\n[host.\"https://x\"]\nca = \"b\"\n"))
	f.Add([]byte("/bin/sh\x00-e\x00/usr/sbin/update-ca-certificates\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, id := range parseOSRelease(data).ids {
			if id != strings.ToLower(id) {
				t.Errorf("id %q", id)
			}
		}
		for _, name := range confFiles(data) {
			if name == "" || strings.ContainsAny(name[:1], "#!\n") || strings.Contains(name, "\n") {
				t.Errorf("file %q", name)
			}
		}
		if names, _, err := caFiles(data); err != nil && names != nil {
			t.Errorf("%q and %v", names, err)
		}
		rebuilds(data)
	})
}
