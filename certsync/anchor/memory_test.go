package anchor

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sources is a small world: a Config, and what was read last.
type sources struct {
	testing.TB
	dir  string
	cfg  Config
	last Memory
}

func newSources(t testing.TB) *sources {
	dir := t.TempDir()
	return &sources{TB: t, dir: dir, cfg: Config{Dirs: []string{dir}, Now: at(noon)}}
}

func (s *sources) put(name, content string) { s.Helper(); write(s, s.dir, name, content) }

func (s *sources) remove(name string) {
	s.Helper()
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		s.Fatal(err)
	}
}

// read reads, checks what comes out, and keeps the memory by way of JSON, as it
// is kept on disk.
func (s *sources) read(broken, refused, warnings []Reason, want ...[]byte) Reading {
	s.Helper()
	r := Read(s.cfg, s.last)
	if diff := cmp.Diff(sorted(want...), fingerprints(r.Anchors)); diff != "" {
		s.Errorf("anchors (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		what string
		want []Reason
		got  []Refusal
	}{{"broken", broken, r.Broken}, {"refused", refused, r.Refused}, {"warnings", warnings, r.Warnings}} {
		if diff := cmp.Diff(c.want, reasons(c.got)); diff != "" {
			s.Errorf("%s (-want +got):\n%s%v", c.what, diff, c.got)
		}
	}
	s.last = nil
	if err := json.Unmarshal(must(json.Marshal(r.Memory))(s), &s.last); err != nil {
		s.Fatal(err)
	}
	if diff := cmp.Diff(r.Memory, s.last); diff != "" {
		s.Errorf("memory on disk (-before +after):\n%s", diff)
	}
	return r
}

type reasonList = []Reason

// Each rule of Read's table, and each twice: what stays must stay for longer
// than one reading.
func TestMemory(t *testing.T) {
	a, b, c := newRoot(t, "a"), newRoot(t, "b"), newRoot(t, "c")
	torn := certPEM(c)[:100]
	leaf := selfSign(t, "leaf", newKey(t), func(c *x509.Certificate) { c.IsCA, c.DNSNames = false, []string{"registry.test"} })
	short := selfSign(t, "short", newKey(t), func(c *x509.Certificate) { c.NotAfter = noon.Add(day) })
	for name, test := range map[string]func(s *sources){
		"the directory is gone": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("")
			for range 2 {
				s.read(reasonList{Missing}, nil, reasonList{Remembered, Remembered}, a, b)
			}
		},
		"the directory is empty, and is good again": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("a")
			s.remove("b")
			for range 2 {
				s.read(reasonList{Empty}, nil, reasonList{Remembered, Remembered}, a, b)
			}
			s.put("c", certPEM(c))
			s.read(nil, nil, nil, c)
		},
		"nothing in it gives an anchor": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.put("a", torn)
			s.remove("b")
			for range 2 {
				s.read(reasonList{NoAnchor}, reasonList{Truncated}, reasonList{Remembered, Remembered}, a, b)
			}
		},
		"a file is refused as a whole": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.put("a", torn)
			for range 2 {
				s.read(nil, reasonList{Truncated}, reasonList{Remembered}, a, b)
			}
			s.put("a", certPEM(c))
			s.read(nil, nil, nil, b, c)
		},
		"a file cannot be read": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("a")
			if err := os.Mkdir(filepath.Join(s.dir, "a"), 0o700); err != nil {
				s.Fatal(err)
			}
			for range 2 {
				s.read(nil, reasonList{NotRegular}, reasonList{Remembered}, a, b)
			}
		},
		"a file is refused in part": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.put("a", certPEM(c)+torn)
			for range 2 {
				s.read(nil, reasonList{Truncated}, reasonList{Remembered}, a, b, c)
			}
			s.put("a", certPEM(c))
			s.read(nil, nil, nil, b, c)
		},
		"a file holds a key now": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.put("a", certPEM(c)+"-----BEGIN PRIVATE KEY-----\n")
			for range 2 {
				s.read(nil, reasonList{PrivateKey}, reasonList{Remembered}, a, b)
			}
		},
		"a file is gone, others are there": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("a")
			s.read(nil, nil, nil, b)
		},
		"a file is gone, another is broken": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("a")
			s.put("b", "")
			s.read(reasonList{NoAnchor}, reasonList{Empty}, reasonList{Remembered, Remembered}, a, b)
		},
		"a file has another anchor now": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.put("a", certPEM(c))
			s.read(nil, nil, nil, b, c)
		},
		"a file has another name now": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("a")
			s.put("z", certPEM(a))
			s.read(nil, nil, nil, a, b)
		},
		"an anchor is no longer allowed": func(s *sources) {
			s.cfg.Allow = sorted(a, b)
			s.read(nil, nil, nil, a, b)
			s.cfg.Allow = []string{strings.ToUpper(fingerprint(b)[:2]) + ":" + fingerprint(b)[2:]}
			s.read(nil, reasonList{NotAllowed}, nil, b)
		},
		"a new anchor that is not allowed takes the old one away": func(s *sources) {
			s.cfg.Allow = sorted(a, b)
			s.read(nil, nil, nil, a, b)
			s.put("a", certPEM(c))
			s.read(nil, reasonList{NotAllowed}, nil, b)
		},
		"what is remembered is no longer allowed": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.remove("")
			s.read(reasonList{Missing}, nil, reasonList{Remembered, Remembered}, a, b)
			s.cfg.Allow = sorted(b)
			s.read(reasonList{Missing}, nil, reasonList{Remembered}, b)
			s.cfg.Allow = nil
			s.read(reasonList{Missing}, nil, reasonList{Remembered}, b)
		},
		"nothing is allowed any more": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.cfg.Allow = sorted(c)
			s.read(reasonList{NoAnchor}, reasonList{NotAllowed, NotAllowed}, nil)
		},
		"the clock runs ahead": func(s *sources) {
			s.put("a", certPEM(short))
			s.read(nil, nil, nil, short, b)
			s.cfg.Now = at(noon.Add(2 * day))
			for range 2 {
				s.read(nil, reasonList{Expired}, nil, short, b)
			}
			s.put("b", certPEM(c)) // expired is no reason to keep others
			s.read(nil, reasonList{Expired}, nil, short, c)
			s.remove("a")
			s.read(nil, nil, nil, c)
			s.put("a", certPEM(short))
			s.read(nil, reasonList{Expired}, nil, c)
		},
		"the clock runs behind, and the directory is gone": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.cfg.Now = at(time.Unix(0, 0))
			for range 2 {
				s.read(nil, reasonList{NotYetValid, NotYetValid}, nil, a, b)
			}
			s.put("c", certPEM(c)) // nobody knows this one
			s.read(nil, reasonList{NotYetValid, NotYetValid, NotYetValid}, nil, a, b)
			s.remove("")
			for range 2 {
				s.read(reasonList{Missing}, reasonList{NotYetValid, NotYetValid}, reasonList{Remembered, Remembered}, a, b)
			}
		},
		"an expired anchor is removed from its file": func(s *sources) {
			s.put("a", certPEM(short)+certPEM(a))
			s.read(nil, nil, nil, short, a, b)
			s.cfg.Now = at(noon.Add(2 * day))
			s.read(nil, reasonList{Expired}, nil, short, a, b)
			s.put("a", certPEM(short)+certPEM(c)) // a is gone, although an expired one is beside it
			s.read(nil, reasonList{Expired}, nil, short, b, c)
			s.put("a", certPEM(c))
			s.read(nil, nil, nil, b, c)
		},
		"a directory is dropped": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			gone := filepath.Join(s.TempDir(), "never")
			s.cfg.Dirs = []string{gone}
			s.read(reasonList{Missing}, nil, nil)
			if _, ok := s.last[s.dir]; ok {
				s.Error("it is still in the memory")
			}
		},
		"two directories, one breaks": func(s *sources) {
			other := s.TempDir()
			write(s, other, "c", certPEM(c))
			s.cfg.Dirs = append(s.cfg.Dirs, other)
			s.read(nil, nil, nil, a, b, c)
			s.remove("")
			s.read(reasonList{Missing}, nil, reasonList{Remembered, Remembered}, a, b, c)
		},
		"an anchor is gone from one of two directories": func(s *sources) {
			other := s.TempDir()
			write(s, other, "x", certPEM(a))
			s.cfg.Dirs = append(s.cfg.Dirs, other)
			s.read(nil, nil, nil, a, b)
			s.remove("a")
			s.read(nil, nil, nil, a, b)
		},
		"the same directory twice": func(s *sources) {
			s.cfg.Dirs = append(s.cfg.Dirs, s.dir+"/./")
			s.put("bad", torn)
			s.read(nil, reasonList{Truncated}, nil, a, b)
		},
		"no directory at all": func(s *sources) {
			s.read(nil, nil, nil, a, b)
			s.cfg.Dirs = nil
			s.read(nil, nil, nil)
		},
		"a server's certificate in the place of its CA": func(s *sources) {
			s.cfg.Registries = []string{"registry.test:5000"}
			s.put("a", certPEM(a))
			s.read(nil, nil, nil, a, b)
			s.put("a", certPEM(leaf))
			for range 2 {
				s.read(nil, nil, reasonList{Remembered, ServerCert}, a, leaf, b)
			}
			s.put("a", certPEM(b))
			s.read(nil, nil, nil, b)
		},
		"the registry of a remembered leaf is no longer configured": func(s *sources) {
			s.put("a", certPEM(leaf))
			s.cfg.Registries = []string{"registry.test:5000"}
			s.read(nil, nil, reasonList{ServerCert}, leaf, b)
			s.remove("")
			r := s.read(reasonList{Missing}, nil, reasonList{Remembered, Remembered, ServerCert}, leaf, b)
			if i := slices.IndexFunc(r.Anchors, func(a Anchor) bool { return a.Leaf }); i < 0 || r.Anchors[i].Source != filepath.Join(s.dir, "a") {
				s.Errorf("the leaf is none any more: %v", r.Anchors)
			}
			s.cfg.Registries = nil
			s.read(reasonList{Missing}, nil, reasonList{Remembered}, b)
		},
		"broken again and again, it does not grow": func(s *sources) {
			want := [][]byte{a, b}
			for i := range maxCerts - 2 {
				next := newRoot(s, fmt.Sprint("next ", i))
				s.put("a", certPEM(next)+torn)
				want = append(want, next)
				s.last = Read(s.cfg, s.last).Memory
			}
			s.put("a", certPEM(newRoot(s, "too many"))+torn)
			for range 2 {
				s.read(reasonList{TooMany}, reasonList{Truncated}, slices.Repeat(reasonList{Remembered}, maxCerts), want...)
			}
		},
		"a damaged memory": func(s *sources) {
			s.last = Memory{s.dir: {"a": {"rubbish", certPEM(a)[:80], certPEM(c), certPEM([]byte("x"))}, "": nil}}
			s.remove("")
			s.read(reasonList{Missing}, nil, reasonList{Remembered}, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSources(t)
			s.put("a", certPEM(a))
			s.put("b", certPEM(b))
			if strings.HasPrefix(name, "broken again") {
				s.last = Read(s.cfg, nil).Memory
			}
			test(s)
		})
	}
}
