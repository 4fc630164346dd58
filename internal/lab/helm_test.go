package lab

import "testing"

// TestHelmUnknown: the known versions are built where charts are tested.
func TestHelmUnknown(t *testing.T) {
	t.Parallel()
	if path, err := (&Lab{}).Helm("2"); err == nil {
		t.Errorf("helm 2 is %s", path)
	}
}
