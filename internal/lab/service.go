package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of the node's nft tables, one for each family.
const tableName = "nodestead-lab"

// dnsPort is the port of every service and server.
const dnsPort = 53

// Balance is how a service chooses the backend of a new connection.
type Balance int

const (
	// Random chooses at random, as kube-proxy does.
	Random Balance = iota
	// Alternate takes the backends in turn, so that the two packets of a pair
	// that are translated one after the other always differ.
	Alternate
	// Hash chooses by source address and port, so that all packets of one
	// socket go to one backend.
	Hash
)

// String is the name of the balance in lower case.
func (b Balance) String() string {
	switch b {
	case Random:
		return "random"
	case Alternate:
		return "alternate"
	case Hash:
		return "hash"
	}
	return fmt.Sprintf("Balance(%d)", int(b))
}

type service struct {
	addr     netip.Addr
	balance  Balance
	backends []netip.Addr
}

// AddService makes the node translate UDP and TCP to port 53 of addr, from pods
// and from the node itself, to one of the backends, which must be of addr's
// family. A service of that address that exists already is replaced, as by
// kube-proxy when endpoints change: connections that are tracked keep the
// backend that they have.
func (l *Lab) AddService(addr netip.Addr, b Balance, backends ...netip.Addr) error {
	if err := l.addService(service{addr, b, slices.Clone(backends)}); err != nil {
		return fmt.Errorf("add service %v: %w", addr, err)
	}
	return nil
}

func (l *Lab) addService(s service) error {
	if len(s.backends) == 0 {
		return errors.New("no backends")
	}
	if s.balance < Random || s.balance > Hash {
		return fmt.Errorf("unknown balance %d", int(s.balance))
	}
	for _, b := range s.backends {
		if b.Is4() != s.addr.Is4() {
			return fmt.Errorf("backend %v is of the other family", b)
		}
	}
	l.servicesMu.Lock()
	defer l.servicesMu.Unlock()
	services := slices.DeleteFunc(slices.Clone(l.services), func(old service) bool { return old.addr == s.addr })
	services = append(services, s)
	// All rules of the family go and come in one transaction.
	t := tableOf(s.addr.Is4())
	err := l.nft(func(conn *nftables.Conn) error {
		maps := uint32(0)
		for _, chain := range t.nat() {
			conn.FlushChain(chain)
			for _, s := range services {
				if s.addr.Is4() != t.is4 {
					continue
				}
				for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
					maps++
					if err := t.addDNAT(conn, chain, s, proto, maps); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.services = services
	return nil
}

// nft runs one transaction in the node's namespace, of what fn adds to it.
func (l *Lab) nft(fn func(*nftables.Conn) error) error {
	return l.node.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		if err := fn(conn); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("change the node's nft rules: %w", err)
		}
		return nil
	})
}

// addTables makes the tables and their NAT chains. A NAT chain, even an empty
// one, is also what turns connection tracking on in a network namespace.
func (l *Lab) addTables() error {
	return l.nft(func(conn *nftables.Conn) error {
		for _, t := range []table{tableOf(true), tableOf(false)} {
			conn.AddTable(t.Table)
			for _, chain := range t.nat() {
				conn.AddChain(chain)
			}
		}
		return nil
	})
}

// table is the node's table of one family, with what differs between the two.
type table struct {
	*nftables.Table
	is4      bool
	saddr    uint32 // offset in the IP header
	daddr    uint32
	addrLen  uint32
	addrType nftables.SetDatatype
}

func tableOf(is4 bool) table {
	if is4 {
		return table{
			Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4},
			is4:   true, saddr: 12, daddr: 16, addrLen: 4, addrType: nftables.TypeIPAddr,
		}
	}
	return table{
		Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv6},
		saddr: 8, daddr: 24, addrLen: 16, addrType: nftables.TypeIP6Addr,
	}
}

// nat are the chains of the table that translate destinations.
func (t table) nat() []*nftables.Chain {
	return []*nftables.Chain{
		{Name: "prerouting", Table: t.Table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest},
		{Name: "output", Table: t.Table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest},
	}
}

// addDNAT adds to the transaction: ADDR PROTO dport 53 dnat to BALANCE map { 0: BACKEND, … }.
// mapID is the number of the map in the transaction. The library would number
// it and name it, but counts without a lock, over all labs of the process.
func (t table) addDNAT(conn *nftables.Conn, chain *nftables.Chain, s service, proto byte, mapID uint32) error {
	backends := &nftables.Set{
		Table: t.Table, ID: mapID, Name: "__map%d", Anonymous: true, Constant: true,
		IsMap: true, KeyType: nftables.TypeInteger, DataType: t.addrType,
	}
	var elements []nftables.SetElement
	for i, b := range s.backends {
		elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: b.AsSlice()})
	}
	if err := conn.AddSet(backends, elements); err != nil {
		return fmt.Errorf("map of backends: %w", err)
	}
	exprs := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: t.daddr, Len: t.addrLen},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: s.addr.AsSlice()},
	}
	exprs = append(exprs, matchPort(proto, dnsPort)...)
	exprs = append(exprs, t.balance(s)...)
	exprs = append(exprs,
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: backends.Name, SetID: backends.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(t.Family), RegAddrMin: 1},
	)
	conn.AddRule(&nftables.Rule{Table: t.Table, Chain: chain, Exprs: exprs})
	return nil
}

// matchPort matches the protocol and the destination port.
func matchPort(proto byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Register: 1, Op: expr.CmpOpEq, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// balance puts the number of the backend into register 1.
func (t table) balance(s service) []expr.Any {
	n := uint32(len(s.backends))
	switch s.balance {
	case Alternate:
		return []expr.Any{&expr.Numgen{Register: 1, Modulus: n, Type: unix.NFT_NG_INCREMENTAL}}
	case Hash:
		// The kernel counts registers of four bytes from NFT_REG32_00 on, and
		// fills a shorter load up with zeros.
		port := unix.NFT_REG32_00 + t.addrLen/4
		return []expr.Any{
			&expr.Payload{DestRegister: unix.NFT_REG32_00, Base: expr.PayloadBaseNetworkHeader, Offset: t.saddr, Len: t.addrLen},
			&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
			&expr.Hash{SourceRegister: unix.NFT_REG32_00, DestRegister: 1, Length: t.addrLen + 4, Modulus: n, Seed: 1, Type: expr.HashTypeJenkins},
		}
	default:
		return []expr.Any{&expr.Numgen{Register: 1, Modulus: n, Type: unix.NFT_NG_RANDOM}}
	}
}
