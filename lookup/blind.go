package lookup

import (
	"fmt"
	"math"
	"slices"
)

// entered says whether an answer to a lookup came into the node.
func (t *tracker) entered(e *entry) bool {
	return e.trouble != 0 && len(t.troubles[e.trouble].entered) > 0
}

// infer takes the answer that entered the node for the one that the client got,
// where those cannot be seen.
func (t *tracker) infer(i uint32, e *entry) {
	found, _ := t.look(e, e.start-sameMoment, math.MaxInt64, e.start, 0)
	for _, p := range found {
		if !p.out {
			t.end(i, e, p.at, result(p.rcode))
			return
		}
	}
}

// passesUnseen says whether a lookup shows that the answers on its link cannot be
// seen: it entered the node, and its client, which did not get it as far as can
// be seen, is content all the same. One that asks again did not get it.
func (t *tracker) passesUnseen(home *place, e *entry) bool {
	return home.role == client && home.answered == 0 && home.asked >= blindAfter &&
		e.attempts == 1 && t.now-e.start > contentAfter && t.entered(e)
}

// blind notes that a link's answers pass unseen.
func (t *tracker) blind(home *place) {
	first := !slices.ContainsFunc(t.places.all, func(p place) bool { return p.blind && p.gone == 0 })
	home.blind = true
	if first {
		t.emit(Blindness{
			Time: when(t.now), Reason: AnswersUnseen, Blind: true,
			Evidence: fmt.Sprintf("%d questions came in on %s, and answers to them entered the node, but not one left on %s",
				home.asked, home.name, home.name),
			Remedy: "the network plugin hands packets to pods past their links (Cilium does with bpf_redirect_peer; it can be turned off); " +
				"until then outcomes are taken from the answers that enter the node, and lost ones are not seen",
		})
	}
}

// sees notes that a link's answers are seen after all.
func (t *tracker) sees(home *place, at int64) {
	home.blind = false
	if !slices.ContainsFunc(t.places.all, func(p place) bool { return p.blind && p.gone == 0 }) {
		t.emit(Blindness{Time: when(at), Reason: AnswersUnseen, Evidence: "an answer left on " + home.name})
	}
}
