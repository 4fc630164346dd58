package lookup

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// directed makes a filter see each packet as of one direction: outside of a
// packet socket none has any.
func directed(program []bpf.RawInstruction, egress bool) []bpf.RawInstruction {
	constant := bpf.RawInstruction{Op: unix.BPF_LD | unix.BPF_IMM}
	if egress {
		constant.K = unix.PACKET_OUTGOING
	}
	load, err := bpf.LoadExtension{Num: bpf.ExtType}.Assemble()
	if err != nil {
		panic(err)
	}
	out := make([]bpf.RawInstruction, len(program))
	for i, instruction := range program {
		if out[i] = instruction; instruction == load {
			out[i] = constant
		}
	}
	return out
}

// isBeyond is what the filter has to decide, by the decoder and in the tracker's
// words.
func isBeyond(frame []byte, egress bool, local local) bool {
	var p packet
	if !decode(frame, []uint16{53}, &p) || p.kind != datagram || cap(p.message) < 3 {
		return false
	}
	// The filter does not look at the UDP header's length.
	answer, of := p.message[:3][2]&0x80 != 0, p.src.addr
	if answer {
		of = p.dst.addr
	}
	return answer != egress && !local.has(of)
}

// Every packet goes into one ring, and into the right one.
func TestShares(t *testing.T) {
	other := map[addr]struct{}{}
	for i := range maxOwn {
		ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		if i%2 == 0 {
			ip = netip.AddrFrom16([16]byte{0xfd, 15: byte(i)})
		}
		other[addrOf(ip)] = struct{}{}
	}
	frames := samples()
	for name, f := range samples() {
		// The same as answers: the bit of a message that begins where it does in
		// most of them.
		if i := len(f) - len(queryBytes) + 2; i > 28 && f[i] == queryBytes[2] {
			f[i] |= 0x80
			frames[name+", QR"] = f
		}
	}
	for _, end := range [][2]string{{"127.0.0.1", "127.0.0.53"}, {"169.254.20.10", "169.254.20.11"}, {"fe80::1", "fe80::2"}, {"::1", "::1"}, {"febf::1", "fec0::1"}} {
		src, dst, header := netip.MustParseAddr(end[0]), netip.MustParseAddr(end[1]), ip6
		if src.Is4() {
			header = ip4
		}
		frames["from "+end[0]] = header(unix.IPPROTO_UDP, src, dst, udp(40000, 53, queryBytes))
	}
	seen, err := filepath.Glob(filepath.Join("testdata", "frames", "*"))
	if err != nil || len(seen) == 0 {
		t.Fatalf("no frames: %v", err)
	}
	for _, path := range seen {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		frames[filepath.Base(path)] = b
	}
	beyonds := 0
	for name, own := range map[string]map[addr]struct{}{
		"none": {}, "pods": {addrOf(pod4): {}, addrOf(pod6): {}}, "services": {addrOf(service4): {}, addrOf(service6): {}}, "most": other,
	} {
		all := map[addr]struct{}{}
		for a := range own {
			all[a] = struct{}{}
		}
		for _, a := range []string{"127.0.0.1", "169.254.20.10", "fe80::1", "::1", "febf::1"} {
			all[addrOf(netip.MustParseAddr(a))] = struct{}{} // need not be named
		}
		named, ok := owned(all)
		if !ok || len(named) != len(own) {
			t.Fatalf("%s: %d addresses of %d, %v", name, len(named), len(own), ok)
		}
		local := newLocal(all)
		for _, egress := range []bool{false, true} {
			shares := map[share]*kernelFilter{}
			for _, of := range []share{everything, beyond, near, noShare} {
				program, err := filter([]uint16{53}, of, named)
				if err != nil {
					t.Fatal(err)
				}
				shares[of] = newKernelProgram(t, directed(program, egress))
			}
			for frame, b := range frames {
				for _, n := range []int{len(b), 27, 28, 30, 31, 48, 50, 51} {
					cut := b[:min(n, len(b)):min(n, len(b))]
					got := map[share]bool{}
					for of, k := range shares {
						if got[of], err = k.passes(cut); err != nil {
							t.Fatal(err)
						}
					}
					isBeyond := isBeyond(cut, egress, local)
					if isBeyond {
						beyonds++
					}
					if got[beyond] != isBeyond || got[near] != (got[everything] && !isBeyond) || got[noShare] {
						t.Errorf("%s, cut to %d, egress %v, own: %s: %v, beyond: %v", frame, len(cut), egress, name, got, isBeyond)
					}
				}
			}
		}
	}
	if beyonds < 100 {
		t.Errorf("only %d packets that are seen beyond the clients' links", beyonds)
	}
}

func TestOwned(t *testing.T) {
	local := map[addr]struct{}{}
	for i := range maxOwn + 1 {
		local[addrOf(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))] = struct{}{}
	}
	if own, ok := owned(local); ok {
		t.Errorf("%d addresses of %d are taken", len(own), len(local))
	}
}
