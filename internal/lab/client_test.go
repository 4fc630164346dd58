package lab

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, out string
		want      []Answer
		bad       bool
	}{
		{name: "ok", out: "a.test ok 1.500 192.0.2.1 2001:db8::1\n# lookups=1\n", want: []Answer{{Name: "a.test", Took: 1500 * time.Microsecond, Addrs: answers}}},
		{name: "failed", out: "a.test EAI_AGAIN 5000.0\n# lookups=1\n", want: []Answer{{Name: "a.test", Err: "EAI_AGAIN", Took: 5 * time.Second}}},
		{name: "none", out: "# lookups=0\n"},
		{name: "cut short", out: "a.test ok 1.500 192.0.2.1\n", bad: true},
		{name: "too few fields", out: "a.test ok\n# lookups=1\n", bad: true},
		{name: "no number", out: "a.test ok soon\n# lookups=1\n", bad: true},
		{name: "no address", out: "a.test ok 1 nowhere\n# lookups=1\n", bad: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseAnswers(strings.NewReader(test.out))
			if (err != nil) != test.bad {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		})
	}
}
