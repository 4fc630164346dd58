package lookup

import (
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"github.com/miekg/dns"
)

// healthyPackets is a healthy pair as it passes the node: eight packets.
func healthyPackets(b testing.TB) []packet {
	var out []packet
	a, aaaa := pairOf("git.example.de.", 0, 0)
	for _, q := range []ask{a, aaaa} {
		q = q.withDefaults()
		question, err := q.message().Pack()
		if err != nil {
			b.Fatal(err)
		}
		answer, err := q.reply(wholeAnswer).Pack()
		if err != nil {
			b.Fatal(err)
		}
		pod, service, server := endpointOf(q.clientOf()), endpointOf(q.to), endpointOf(q.via)
		out = append(out,
			packet{link: podLink, src: pod, dst: service, message: question},
			packet{link: uplinkLink, egress: true, src: pod, dst: server, message: question},
			packet{link: uplinkLink, src: server, dst: pod, message: answer},
			packet{link: podLink, egress: true, src: service, dst: pod, message: answer})
	}
	return out
}

// renew makes a pair's packets those of the n-th pair.
func renew(pair []packet, n int, at, step int64) {
	// 64 clients, and ports as the kernel hands them out.
	ip, port, id := uint64(n%64), uint16(32768+n*7919%28232), uint16(n*40503)
	for i := range pair {
		p := &pair[i]
		p.at = at + int64(i)*step
		side := &p.src
		if i%4 >= 2 {
			side = &p.dst
		}
		side.port = port
		side.addr.lo = side.addr.lo&^0xff | ip
		binary.BigEndian.PutUint16(p.message, id+uint16(i/4*130))
	}
}

// BenchmarkPacket is the usual path: what a packet of a healthy lookup costs at
// 120,000 packets a second, its share of the ticks included.
func BenchmarkPacket(b *testing.B) {
	w := newWire(b, trackerConfig{})
	w.emit = func(Event) {}
	pair := healthyPackets(b)
	const step = int64(time.Second) / 120000
	at, ticked := w.start.UnixNano(), w.start.UnixNano()
	run := func(packets int) {
		for n := range packets / len(pair) {
			renew(pair, n, at, step)
			for i := range pair {
				w.packet(&pair[i])
			}
			at += int64(len(pair)) * step
			if at-ticked >= int64(100*time.Millisecond) {
				w.tick(at)
				ticked = at
			}
		}
	}
	run(400000)
	b.ReportAllocs()
	b.ResetTimer()
	run(b.N)
}

// BenchmarkPacketPending is the same with 100,000 lookups pending.
func BenchmarkPacketPending(b *testing.B) {
	w := newWire(b, trackerConfig{pending: 200000})
	w.emit = func(Event) {}
	pair := healthyPackets(b)
	at := w.start.UnixNano()
	lost := healthyPackets(b)[:1]
	for n := range 100000 {
		renew(lost, n, at, 0)
		lost[0].src.addr.lo += uint64(64 + n%64)
		lost[0].link = dnsPodLink
		binary.BigEndian.PutUint16(lost[0].message, uint16(n/7))
		w.packet(&lost[0])
	}
	if w.pending() < 99000 {
		b.Fatalf("%d lookups are pending", w.pending())
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N / len(pair) {
		renew(pair, n, at, 0)
		for i := range pair {
			w.packet(&pair[i])
		}
		if n%2048 == 0 { // what ended goes, what is pending stays
			b.StopTimer()
			w.each(func(i uint32, e *entry) {
				if e.is(over) && !e.is(done) {
					w.count(i, e)
				}
			})
			w.wheel.drain(&w.store, func(i uint32) {
				if e := w.store.at(i); e.is(done) {
					w.release(e)
					w.store.remove(i)
				} else {
					w.wheel.put(&w.store, i, at+second)
				}
			})
			b.StartTimer()
		}
	}
}

// BenchmarkSearch is a pod with the usual search list that asks for a name
// outside of the cluster: six lookups come to nothing before two that do not.
func BenchmarkSearch(b *testing.B) {
	w := newWire(b, trackerConfig{})
	w.emit = func(Event) {}
	var all [][]packet
	for i, suffix := range []string{"ci.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
		pair := healthyPackets(b)
		a, aaaa := pairOf("git.example.de."+suffix, 0, 0)
		for j := range pair {
			q := []ask{a, aaaa}[j/4]
			m := q.message()
			if j%4 >= 2 {
				rcode := dns.RcodeNameError
				if i == 3 {
					rcode = dns.RcodeSuccess
				}
				m = q.reply(rcode)
			}
			pair[j].message, _ = m.Pack()
		}
		all = append(all, pair)
	}
	at, ticked := w.start.UnixNano(), w.start.UnixNano()
	const step = int64(time.Second) / 120000
	run := func(packets int) {
		for n := range packets / 32 {
			for i, pair := range all {
				renew(pair, n, at, step)
				for j := range pair {
					binary.BigEndian.PutUint16(pair[j].message, uint16(n*40503+i*1000+j/4*130))
					w.packet(&pair[j])
				}
				at += 8 * step
			}
			if at-ticked >= int64(100*time.Millisecond) {
				w.tick(at)
				ticked = at
			}
		}
	}
	run(400000)
	b.ReportAllocs()
	b.ResetTimer()
	run(b.N)
}

// BenchmarkFull fills the tracker with 100,000 pending lookups, and says how much
// memory they take.
func BenchmarkFull(b *testing.B) {
	for range b.N {
		w := newWire(b, trackerConfig{})
		w.emit = func(Event) {}
		lost := healthyPackets(b)[:1]
		for n := range w.cfg.pending {
			renew(lost, n, w.start.UnixNano(), 0)
			binary.BigEndian.PutUint16(lost[0].message, uint16(n/7))
			w.packet(&lost[0])
		}
		b.ReportMetric(float64(len(w.store.chunks)*entryChunk*int(unsafe.Sizeof(entry{}))+4*len(w.store.buckets))/(1<<20), "MiB")
	}
}
