package main

import (
	"encoding/json"
	"fmt"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// decoded is an object as JSON, and what is wrong with it.
type decoded struct {
	object  json.RawMessage
	problem string
}

// decode reads an object. A key that stands in it twice is a problem, and
// in the objects of Prometheus Operator one that its types do not know.
func decode(text string) decoded {
	object, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return decoded{json.RawMessage("null"), err.Error()}
	}
	var kind struct{ Kind, APIVersion string }
	if err := json.Unmarshal(object, &kind); err != nil {
		return decoded{object, err.Error()}
	}
	var into any
	switch kind.Kind {
	case monitoring.PodMonitorsKind:
		into = new(monitoring.PodMonitor)
	case monitoring.PrometheusRuleKind:
		into = new(monitoring.PrometheusRule)
	default:
		return decoded{object, ""}
	}
	if want := monitoring.SchemeGroupVersion.String(); kind.APIVersion != want {
		return decoded{object, fmt.Sprintf("%s is of %s, not %s", kind.Kind, want, kind.APIVersion)}
	}
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		return decoded{object, err.Error()}
	}
	return decoded{object, ""}
}
