package lab

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestKubeFiles proves that the files of a cluster fit together: a unit names no
// file that is not written, and the API server's certificate is valid for those
// who ask it by its service or from the node.
func TestKubeFiles(t *testing.T) {
	t.Parallel()
	files, err := kubeFiles(KubernetesConfig{ProxyMode: ProxyNFTables})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range kubeUnits(ProxyNFTables) {
		text := files["etc/systemd/system/"+u.name+".service"]
		if !strings.Contains(text, "\nExecStart=/usr/local/bin/"+u.name+" --") {
			t.Errorf("%s:\n%s", u.name, text)
		}
		for _, file := range regexp.MustCompile(`=(/etc/\S+)`).FindAllStringSubmatch(text, -1) {
			if files[file[1][1:]] == "" {
				t.Errorf("%s needs %s", u.name, file[1])
			}
		}
	}
	if text := files["etc/systemd/system/kube-proxy.service"]; !strings.Contains(text, " --proxy-mode=nftables ") {
		t.Errorf("kube-proxy:\n%s", text)
	}

	cert, err := tls.X509KeyPair([]byte(files["etc/kubernetes/apiserver.crt"]), []byte(files["etc/kubernetes/apiserver.key"]))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				CA []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Token string `json:"token"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := json.Unmarshal([]byte(files["etc/kubernetes/admin.conf"]), &config); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	for _, name := range []string{"kubernetes.default.svc", "127.0.0.1", "10.96.0.1", "172.18.0.2"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	if diff := cmp.Diff(config.Users[0].User.Token+",admin,admin,system:masters\n", files["etc/kubernetes/tokens"]); diff != "" {
		t.Errorf("the administrator's token (-client +server):\n%s", diff)
	}
	other, err := kubeFiles(KubernetesConfig{ProxyMode: ProxyNFTables})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/kubernetes/tokens", "etc/kubernetes/accounts.key", "etc/kubernetes/ca.crt"} {
		if files[name] == "" || files[name] == other[name] {
			t.Errorf("two clusters have the same %s", name)
		}
	}
}

// TestKubernetesUnknownMode: nothing is built for a mode that is not there.
func TestKubernetesUnknownMode(t *testing.T) {
	t.Parallel()
	b := &Box{}
	if _, err := b.StartKubernetes(t.Context(), KubernetesConfig{ProxyMode: "ipvs"}); err == nil || !strings.Contains(err.Error(), `unknown mode "ipvs"`) {
		t.Errorf("got %v", err)
	}
}
