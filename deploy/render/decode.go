package main

import (
	"encoding/json"
	"fmt"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// decode gives an object as JSON. A key that stands in it twice is a problem, and
// in the objects of Prometheus Operator one that its types do not know.
func decode(text string) (object json.RawMessage, problem string) {
	object, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return json.RawMessage("null"), err.Error()
	}
	var kind struct{ Kind, APIVersion string }
	if err := json.Unmarshal(object, &kind); err != nil {
		return object, err.Error()
	}
	var into any
	switch kind.Kind {
	case monitoring.PodMonitorsKind:
		into = new(monitoring.PodMonitor)
	case monitoring.PrometheusRuleKind:
		into = new(monitoring.PrometheusRule)
	default:
		return object, ""
	}
	if want := monitoring.SchemeGroupVersion.String(); kind.APIVersion != want {
		return object, fmt.Sprintf("%s is of %s, not %s", kind.Kind, want, kind.APIVersion)
	}
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		return object, err.Error()
	}
	return object, ""
}
