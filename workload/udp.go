package workload

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// rank is how well a socket's local address fits a client's.
type rank int

const (
	noFit   rank = iota
	anyAddr      // bound to ::, which takes IPv4 as well
	anyOwn       // bound to the unspecified address of the client's family
	exact
)

// udpInodes reads /proc/<pid>/net/udp or udp6 and returns the inodes of the
// sockets that fit the client best, and how well they do.
func udpInodes(r io.Reader, client netip.AddrPort) (inodes []uint64, best rank) {
	const most = 8 << 20 // some 60,000 sockets
	lines := bufio.NewScanner(io.LimitReader(r, most))
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		local, ok := parseSocketAddr(fields[1])
		if !ok || local.Port() != client.Port() {
			continue
		}
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil || inode == 0 {
			continue
		}
		switch fit := fits(local.Addr(), client.Addr()); {
		case fit == noFit || fit < best:
		case fit > best:
			inodes, best = []uint64{inode}, fit
		default:
			inodes = append(inodes, inode)
		}
	}
	return inodes, best
}

func fits(local, client netip.Addr) rank {
	switch {
	case local.Unmap() == client:
		return exact
	case local.IsUnspecified() && local.Is4() == client.Is4():
		return anyOwn
	case local.IsUnspecified() && local.Is6():
		return anyAddr
	default:
		return noFit
	}
}

// parseSocketAddr reads "0100007F:0035": the address is printed as words of 32
// bits in the machine's byte order, the port as a number.
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	text, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	p, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(a, uint16(p)), ok && err == nil
}
