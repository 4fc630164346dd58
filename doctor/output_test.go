package doctor

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var three = []Verdict{
	{Check: "kernel", State: OK, Evidence: "Linux 6.18"},
	{Check: "conntrack_table", State: Finding, Evidence: "9 of 10 <entries>", Remedy: "raise it"},
	{Check: "name_cost", State: Unknown, Evidence: "no nameserver"},
}

func TestExit(t *testing.T) {
	for _, tc := range []struct {
		verdicts []Verdict
		want     int
	}{{nil, 0}, {three[:1], 0}, {three, 1}, {three[2:], 2}, {[]Verdict{three[2], three[0]}, 2}} {
		if got := Exit(tc.verdicts); got != tc.want {
			t.Errorf("%v: exit %d, want %d", tc.verdicts, got, tc.want)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := Table(&b, three); err != nil {
		t.Fatal(err)
	}
	want := `ok       kernel           Linux 6.18
finding  conntrack_table  9 of 10 <entries>
                          → raise it
unknown  name_cost        no nameserver
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestJSON(t *testing.T) {
	for _, verdicts := range [][]Verdict{three, {}} {
		var b bytes.Buffer
		if err := JSON(&b, verdicts); err != nil {
			t.Fatal(err)
		}
		var got []Verdict
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(verdicts, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	var b bytes.Buffer
	if err := JSON(&b, nil); err != nil || b.String() != "[]\n" {
		t.Errorf("of nothing: %q, error %v", b.String(), err)
	}
}
