package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	rtnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// exemptionInterval is how often the sensor looks for exemptions.
	exemptionInterval = 5 * time.Second
	// rulesInterval is how often it reads all rules at most, when they change
	// all the time: kube-proxy's can be many thousands.
	rulesInterval = 30 * time.Second
	// nodeLocalLink is the link that NodeLocal DNSCache makes for its
	// addresses. Its rules exempt them from tracking.
	nodeLocalLink = "nodelocaldns"

	msgNFTGetGen = 16 // NFT_MSG_GETGEN (nf_tables.h)
	nftaGenID    = 1  // NFTA_GEN_ID
	// conntrackPriority is where connection tracking begins
	// (NF_IP_PRI_CONNTRACK): rules before it can exempt.
	conntrackPriority = -200
)

// exemption says what takes DNS out of connection tracking, "" when nothing was
// found, or why that could not be told.
type exemption struct {
	evidence string
	err      error
}

// exemptions looks for what takes DNS out of connection tracking: NodeLocal
// DNSCache's link, or a notrack rule in nftables (iptables-nft's included;
// iptables-legacy's rules can't be seen that way).
type exemptions struct {
	ports []uint16
	links *rtnl.Handle
	gen   *netfilter.Conn
	nft   *nftables.Conn

	interval, rulesInterval time.Duration

	generation uint32
	readAt     time.Time
	rules      exemption
}

func openExemptions(ports []uint16) (*exemptions, error) {
	links, err := rtnl.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	gen, err := netfilter.Dial(nil)
	if err != nil {
		links.Close()
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		links.Close()
		return nil, errors.Join(fmt.Errorf("open nftables: %w", err), gen.Close())
	}
	return &exemptions{
		ports: ports, links: links, gen: gen, nft: nft,
		interval: exemptionInterval, rulesInterval: rulesInterval,
	}, nil
}

func (e *exemptions) close() error {
	e.links.Close()
	return errors.Join(e.gen.Close(), e.nft.CloseLasting())
}

// watch looks at once, then at every interval, and hands each result to found.
func (e *exemptions) watch(ctx context.Context, found func(exemption)) error {
	for {
		found(e.look(time.Now()))
		rest(ctx, e.interval)
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (e *exemptions) look(now time.Time) exemption {
	if link, err := e.links.LinkByName(nodeLocalLink); err == nil {
		return exemption{evidence: "NodeLocal DNSCache's link " + link.Attrs().Name + " exists; its addresses are exempt from tracking"}
	}
	generation, err := e.ruleGeneration()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return exemption{} // a kernel without nftables has no such rules
	}
	if err != nil {
		return exemption{err: err}
	}
	if e.readAt.IsZero() || generation != e.generation && now.Sub(e.readAt) >= e.rulesInterval {
		evidence, err := e.notrackRule()
		if err != nil {
			return exemption{err: err} // and again the next time
		}
		e.generation, e.readAt = generation, now
		e.rules = exemption{evidence: evidence}
	}
	return e.rules
}

// ruleGeneration is a number that changes with each change of the ruleset, so
// that unchanged rules need not be read again.
func (e *exemptions) ruleGeneration() (uint32, error) {
	req, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysNFTables, MessageType: msgNFTGetGen,
		Flags: netlink.Request, // without an ACK, which the library would take for the next reply
	}, nil)
	if err != nil {
		return 0, err
	}
	replies, err := e.gen.Query(req)
	if err != nil {
		return 0, fmt.Errorf("read the generation of nftables' rules: %w", permission(err))
	}
	for _, m := range replies {
		if len(m.Data) < nfgenmsgLen {
			continue
		}
		if v := find(m.Data[nfgenmsgLen:], nftaGenID); len(v) == 4 {
			return binary.BigEndian.Uint32(v), nil
		}
	}
	return 0, errors.New("read the generation of nftables' rules: no answer")
}

// notrackRule finds a rule before connection tracking that exempts a port of
// ours. Chains that such rules jump to count as well.
func (e *exemptions) notrackRule() (string, error) {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet} {
		chains, err := e.nft.ListChainsOfTableFamily(family)
		if err != nil {
			return "", fmt.Errorf("list nftables' chains: %w", permission(err))
		}
		named := map[[2]string]*nftables.Chain{}
		var todo []visit
		for _, c := range chains {
			named[[2]string{c.Table.Name, c.Name}] = c
			if early(c) {
				todo = append(todo, visit{chain: c})
			}
		}
		seen := map[visit]bool{}
		for len(todo) > 0 {
			at := todo[0]
			todo = todo[1:]
			if seen[at] {
				continue
			}
			seen[at] = true
			c := at.chain
			rules, err := e.nft.GetRules(c.Table, c)
			if err != nil {
				return "", fmt.Errorf("list nftables' rules in %s %s: %w", c.Table.Name, c.Name, permission(err))
			}
			for _, r := range rules {
				v := verdict{
					ports: e.ports, set: func(name string) [][]byte { return e.elements(c.Table, name) },
					named: at.named, narrowed: at.narrowed,
				}
				untracks, jump := v.rule(r.Exprs)
				if untracks {
					return fmt.Sprintf("a rule in nftables' table %s, chain %s exempts DNS from tracking (notrack)", c.Table.Name, c.Name), nil
				}
				if next := named[[2]string{c.Table.Name, jump}]; next != nil {
					todo = append(todo, visit{chain: next, named: v.named, narrowed: v.narrowed})
				}
			}
		}
	}
	return "", nil
}

// visit is a chain with the conditions under which a jump leads to it.
type visit struct {
	chain           *nftables.Chain
	named, narrowed bool // as in verdict
}

// early tells whether a chain's rules run before connection tracking sees a
// packet.
func early(c *nftables.Chain) bool {
	return c.Hooknum != nil && c.Priority != nil && *c.Priority < conntrackPriority &&
		(*c.Hooknum == *nftables.ChainHookPrerouting || *c.Hooknum == *nftables.ChainHookOutput)
}

// elements gives the keys of a set, none when it can't be read.
func (e *exemptions) elements(table *nftables.Table, name string) [][]byte {
	elements, err := e.nft.GetSetElements(&nftables.Set{Table: table, Name: name})
	if err != nil {
		return nil
	}
	var keys [][]byte
	for _, x := range elements {
		if !x.IntervalEnd {
			keys = append(keys, x.Key)
		}
	}
	return keys
}
