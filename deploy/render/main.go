// Command render renders deploy/chart by the library that helm is made of, without
// helm and without a cluster: for deploy/nodestead.yaml, and for tests.
//
// It is a module of its own. Helm's dependencies stay out of the agent's go.mod,
// where they would choose the versions of what goes into the binary.
//
//	render CHART           prints the manifest for kubectl apply
//	render CHART requests  answers requests, JSON on standard input
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
)

// kubernetes is the version that is rendered for, where a request names none.
const kubernetes = "1.34.2"

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "render: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case len(args) == 1:
		text, err := manifest(args[0])
		if err != nil {
			return err
		}
		_, err = io.WriteString(stdout, text)
		return err
	case len(args) == 2 && args[1] == "requests":
		return answer(args[0], stdin, stdout)
	}
	return errors.New("usage: render CHART [requests]")
}

// request asks for one rendering.
type request struct {
	Values     map[string]any
	Namespace  string
	Kubernetes string
	// Lint asks for helm's opinion of the chart too, which takes longer.
	Lint bool
}

// response is a rendering, or why there is none.
type response struct {
	// Objects are in the order in which helm installs them.
	Objects []json.RawMessage
	Notes   string
	// Refused is why helm would not install it.
	Refused string
	// Problems are what lint says, and fields of the operator's objects that its types
	// do not know.
	Problems []string
}

func answer(dir string, stdin io.Reader, stdout io.Writer) error {
	chart, err := loader.Load(dir)
	if err != nil {
		return err
	}
	in, out := json.NewDecoder(stdin), json.NewEncoder(stdout)
	known := make(map[string]decoded)
	for {
		var r request
		switch err := in.Decode(&r); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read a request: %w", err)
		}
		if err := out.Encode(respond(dir, chart, r, known)); err != nil {
			return err
		}
	}
}

// respond renders the chart. known is what was decoded before: most objects are the
// same in many renderings, and some are large.
func respond(dir string, chart *v2.Chart, r request, known map[string]decoded) response {
	var all response
	if r.Lint {
		version, err := common.ParseKubeVersion(kubernetes)
		if err != nil {
			return response{Refused: err.Error()}
		}
		for _, m := range lint.RunAll(dir, r.Values, "nodestead", lint.WithKubeVersion(version)).Messages {
			all.Problems = append(all.Problems, m.Error())
		}
	}
	manifests, notes, err := render(chart, r)
	if err != nil {
		all.Refused = err.Error()
		return all
	}
	all.Notes = notes
	for _, m := range manifests {
		d, ok := known[m.Content]
		if !ok {
			d = decode(m.Content)
			known[m.Content] = d
		}
		if d.problem != "" {
			all.Problems = append(all.Problems, m.Name+": "+d.problem)
		}
		all.Objects = append(all.Objects, d.object)
	}
	return all
}

// render renders the chart as helm install does.
func render(chart *v2.Chart, r request) (manifests []releaseutil.Manifest, notes string, err error) {
	if r.Kubernetes == "" {
		r.Kubernetes = kubernetes
	}
	version, err := common.ParseKubeVersion(r.Kubernetes)
	if err != nil {
		return nil, "", err
	}
	if constraint := chart.Metadata.KubeVersion; !chartutil.IsCompatibleRange(constraint, version.String()) {
		return nil, "", fmt.Errorf("kubernetes %s is not %s", r.Kubernetes, constraint)
	}
	capabilities := common.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *version
	release := common.ReleaseOptions{Name: "nodestead", Namespace: r.Namespace, Revision: 1, IsInstall: true}
	if release.Namespace == "" {
		release.Namespace = "nodestead"
	}
	values, err := util.ToRenderValues(chart, r.Values, release, capabilities)
	if err != nil {
		return nil, "", err
	}
	files, err := engine.Render(chart, values)
	if err != nil {
		return nil, "", err
	}
	name := path.Join(chart.Name(), "templates", "NOTES.txt")
	notes = files[name]
	delete(files, name)
	hooks, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err == nil && len(hooks) > 0 {
		err = errors.New("the chart has hooks, which kubectl apply does not know")
	}
	return manifests, notes, err
}

const head = `# nodestead for kubectl apply: deploy/chart with its defaults, rendered by make manifest. Settings of the agent go into the
# ConfigMap; restart the pods then (kubectl -n nodestead rollout restart daemonset/nodestead).
apiVersion: v1
kind: Namespace
metadata:
  name: nodestead
  labels:
    app.kubernetes.io/name: nodestead
    # The pods see the node's network and file system.
    pod-security.kubernetes.io/enforce: privileged
`

// manifest is the chart with its defaults as one file.
func manifest(dir string) (string, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return "", err
	}
	manifests, _, err := render(chart, request{})
	if err != nil {
		return "", err
	}
	var text strings.Builder
	text.WriteString(head)
	for _, m := range manifests {
		text.WriteString("---\n")
		for line := range strings.Lines(strings.TrimSpace(m.Content) + "\n") {
			switch words := strings.Fields(line); {
			case len(words) == 0:
			case words[0] == "app.kubernetes.io/managed-by:", words[0] == "app.kubernetes.io/instance:", words[0] == "helm.sh/chart:":
				// They would say that helm has installed it.
			default:
				text.WriteString(line)
			}
		}
	}
	return text.String(), nil
}
