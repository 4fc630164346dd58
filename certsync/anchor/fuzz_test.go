package anchor

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever a file holds: nothing panics; what is taken is a good certificate, and
// is the same when its PEM is read again; nothing of a file with a private key is
// taken; the answer is small and repeats nothing.
func FuzzParse(f *testing.F) {
	for _, c := range allBad(f) {
		if len(c.content) < 10000 {
			f.Add([]byte(c.content))
		}
	}
	a, b := newRoot(f, "a"), newRoot(f, "b")
	pa, pb := certPEM(a), certPEM(b)
	for _, good := range []string{pa, pa + pb, string(a), strings.ReplaceAll(pa, "\n", "\r\n"), "\ufeff" + pa, pa[:len(pa)-1] + pb, "# text\n" + pa} {
		f.Add([]byte(good))
	}
	key := block64("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(newKey(f)))(f))
	r := Config{Registries: []string{"registry.test:5000"}, Now: at(noon)}.rules()
	f.Fuzz(func(t *testing.T, content []byte) {
		p := parse("ca.crt", content, r, nil)
		if len(p.anchors) > maxCerts || len(p.refused) > maxBlocks {
			t.Errorf("%d anchors, %d refusals", len(p.anchors), len(p.refused))
		}
		if len(p.anchors) == 0 && len(p.refused) == 0 {
			t.Error("neither taken nor refused")
		}
		noContent(t, string(content), Reading{Refused: p.refused})
		for _, got := range p.anchors {
			again := parse("ca.crt", got.PEM(), r, nil)
			if len(again.anchors) != 1 || len(again.refused) > 0 || again.anchors[0].Fingerprint != got.Fingerprint || again.anchors[0].Leaf != got.Leaf {
				t.Errorf("read again: %v, %v", again.anchors, again.refused)
			}
			if cert, err := x509.ParseCertificate(got.Cert.Raw); err != nil || !cert.IsCA && !got.Leaf {
				t.Errorf("taken: %v, %v", cert, err)
			}
			count, key := Fingerprints(got.PEM())
			if diff := cmp.Diff(map[string]int{got.Fingerprint: 1}, count); diff != "" || key {
				t.Errorf("key is %v, fingerprints (-want +got):\n%s", key, diff)
			}
		}
		_, hasKey := Fingerprints(content)
		if hasKey && len(p.anchors) > 0 {
			t.Error("taken beside a key")
		}
		for rest := content; ; {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			if len(p.anchors) > 0 && parses(b.Bytes) {
				t.Errorf("taken beside a key under the label %s", b.Type)
			}
		}
		// A key behind it takes all away.
		with := parse("ca.crt", append(append(bytes.Clone(content), '\n'), key...), r, nil)
		if len(with.anchors) > 0 {
			t.Error("taken before a key")
		}
	})
}

// parses tells whether crypto/x509 takes it for a private key.
func parses(der []byte) bool {
	_, err1 := x509.ParsePKCS1PrivateKey(der)
	_, err8 := x509.ParsePKCS8PrivateKey(der)
	_, errEC := x509.ParseECPrivateKey(der)
	return err1 == nil || err8 == nil || errEC == nil
}

// FuzzMemory: whatever is on disk, a reading does not panic, and what it
// remembers is the same after the next.
func FuzzMemory(f *testing.F) {
	f.Add("ca.crt", certPEM(newRoot(f, "a")))
	f.Add("", "rubbish")
	dir := f.TempDir() + "/none"
	f.Fuzz(func(t *testing.T, name, text string) {
		cfg := Config{Dirs: []string{dir}, Now: at(noon)}
		r := Read(cfg, Memory{dir: {name: {text, text}}})
		again := Read(cfg, r.Memory)
		if diff := cmp.Diff(r.Memory, again.Memory); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}
