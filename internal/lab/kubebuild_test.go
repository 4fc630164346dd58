package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLabModule(t *testing.T) {
	t.Parallel()
	const goMod = `module k8s.io/kubernetes

require (
	k8s.io/api v0.0.0
	k8s.io/utils v0.0.0-20250604170112-4c0f3b243397
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/csi-translation-lib => ./staging/src/k8s.io/csi-translation-lib
	example.test/other => ./elsewhere
)
replace k8s.io/kms => ./staging/src/k8s.io/kms
`
	const want = `module lab

go 1.24.0

godebug default=go1.24

require k8s.io/kubernetes v1.34.2

replace k8s.io/api => k8s.io/api v0.34.2
replace k8s.io/csi-translation-lib => k8s.io/csi-translation-lib v0.34.2
replace k8s.io/kms => k8s.io/kms v0.34.2
`
	got, err := labModule(goMod)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err := labModule("module k8s.io/kubernetes\n"); err == nil {
		t.Errorf("without replacements: %s", got)
	}
}
