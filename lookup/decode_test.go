package lookup

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// decoded is what of a packet the decoder fills, to compare and to read.
type decoded struct {
	Kind     string
	Src, Dst netip.AddrPort
	From     string // "" for none
	ID       uint16
	Message  string
}

func (p *packet) decoded() decoded {
	d := decoded{
		Kind: map[kind]string{datagram: "datagram", connect: "connect", unreachable: "unreachable"}[p.kind],
		Src:  p.src.netip(), Dst: p.dst.netip(), ID: p.ipID, Message: string(p.message),
	}
	if p.from != (addr{}) {
		d.From = p.from.netip().String()
	}
	return d
}

func TestDecode(t *testing.T) {
	client4, server4 := netip.AddrPortFrom(pod4, 40000), netip.AddrPortFrom(service4, 53)
	client6, server6 := netip.AddrPortFrom(pod6, 40000), netip.AddrPortFrom(service6, 53)
	q := string(queryBytes)
	question4 := decoded{"datagram", client4, server4, "", testID, q}
	question6 := decoded{"datagram", client6, server6, "", 0, q}
	with := func(d decoded, message string) decoded { d.Message = message; return d }
	long := make([]byte, 2048-28)
	copy(long, queryBytes)
	want := map[string]decoded{
		"question4":            question4,
		"question6":            question6,
		"answer4":              {"datagram", server4, client4, "", testID, q},
		"answer6":              {"datagram", server6, client6, "", 0, q},
		"options4":             question4,
		"length 2048":          with(question4, string(long)),
		"flow label 0x86dd":    question6,
		"padded4":              question4,
		"cut message":          with(question4, q[:12]),
		"empty message":        with(question4, ""),
		"UDP length 0":         with(question4, ""),
		"first fragment4":      question4,
		"first fragment6":      question6,
		"hop by hop6":          question6,
		"routing, options6":    question6,
		"extensions, fragment": question6,
		"four extensions":      question6,
		"long extension":       question6,
		"VLAN4":                question4,
		"VLAN6":                question6,
		"two VLANs":            question4,
		"QinQ6":                question6,
		"syn4":                 {"connect", client4, server4, "", testID, ""},
		"syn6":                 {"connect", client6, server6, "", 0, ""},
		"unreachable4":         {"unreachable", client4, server4, "172.18.0.3", testID, ""},
		"unreachable6":         {"unreachable", client6, server6, "fd00:172:18::3", 0, q},
		"unreachable, options": {"unreachable", client4, server4, "172.18.0.3", testID, q},

		"unreachable, quoted extensions": {"unreachable", client6, server6, "fd00:172:18::3", 0, q},
	}
	k := newKernelFilter(t, 53)
	frames := samples()
	for name := range want {
		if frames[name] == nil {
			t.Errorf("no frame %q", name)
		}
	}
	for name, frame := range frames {
		t.Run(name, func(t *testing.T) {
			p := packet{kind: 99, from: addrOf(router4), message: []byte("of the packet before"), ipID: 1}
			ok := decode(frame, []uint16{53}, &p)
			w, taken := want[name]
			if ok != taken {
				t.Errorf("taken: %v, want %v", ok, taken)
			} else if ok {
				if diff := cmp.Diff(w, p.decoded(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
					t.Error(diff)
				}
			}
			if err := k.agree(frame, 53); err != nil {
				t.Error(err)
			}
			// Cut anywhere, both still agree.
			for n := 1; n < len(frame) && n < 120; n++ {
				if err := k.agree(frame[:n], 53); err != nil {
					t.Fatalf("cut to %d bytes: %v", n, err)
				}
			}
		})
	}
}

// FuzzFrame holds the decoder and the filter in the kernel together on any
// bytes. Its seeds are frames that were seen in the lab (TestLiveFrames writes
// them) and those of TestDecode.
func FuzzFrame(f *testing.F) {
	for _, s := range samples() {
		f.Add(s)
	}
	seen, err := filepath.Glob(filepath.Join("testdata", "frames", "*"))
	if err != nil || len(seen) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, path := range seen {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	k := newKernelFilter(f, 53, 5353)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 9000 {
			return // no frame
		}
		if err := k.agree(b, 53, 5353); err != nil {
			t.Errorf("%v: % x", err, b)
		}
		var p packet
		if decode(b, []uint16{53, 5353}, &p) && len(p.message) > len(b)-28 {
			t.Errorf("a message of %d bytes in %d", len(p.message), len(b))
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for name, frame := range map[string][]byte{"IPv4": samples()["answer4"], "IPv6": samples()["answer6"]} {
		b.Run(name, func(b *testing.B) {
			var p packet
			ports := []uint16{53}
			b.ReportAllocs()
			for b.Loop() {
				if !decode(frame, ports, &p) {
					b.Fatal("refused")
				}
			}
		})
	}
}
