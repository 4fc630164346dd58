package lab

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
	"strings"
)

const (
	// kubeDir is where the box has what is written here.
	kubeDir = "/etc/kubernetes"
	// kubeServices are the addresses of services, kubeAPI that of the first one.
	kubeServices = "10.96.0.0/16"
	kubeAPI      = "10.96.0.1"
	// nodeName is the name of the node, and the box's host name.
	nodeName = "node"
)

//go:embed kube/coredns.yaml kube/kubelet.yaml
var kubeSources embed.FS

// kubeTunables are settings of the kernel that kubelet makes as it likes them,
// for the whole machine. In the box it finds them as it wants them: these values
// in files that are mounted over the real ones.
var kubeTunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// kubeUnit is a program of Kubernetes as a unit of the box's systemd.
type kubeUnit struct {
	name  string
	after string // which unit must serve before; "" for none
	kind  string // "notify": it tells systemd when it serves
	args  []string
	ready string // a command that fails until it really serves; "" for none
}

// kubeUnits are the units in the order in which they start.
func kubeUnits(mode ProxyMode) []kubeUnit {
	in := func(file string) string { return path.Join(kubeDir, file) }
	config := "--kubeconfig=" + in("admin.conf")
	const api = "kube-apiserver"
	return []kubeUnit{
		{name: "etcd", kind: "notify", args: []string{"--data-dir=/var/lib/etcd", "--log-level=warn", "--logger=zap"}},
		{name: api, after: "etcd", kind: "notify", args: []string{
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + node4.Addr().String(),
			"--service-cluster-ip-range=" + kubeServices,
			"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + in("accounts.key"), "--service-account-signing-key-file=" + in("accounts.key"),
			"--token-auth-file=" + in("tokens"),
			"--authorization-mode=Node,RBAC",
			"--allow-privileged=true",
			// It tells systemd before it is healthy, and the controllers wait for that for
			// ten seconds only.
		}, ready: "kubectl " + config + " get --raw=/readyz"},
		{name: "kube-controller-manager", after: api, kind: "exec", args: []string{
			config, "--leader-elect=false",
			"--service-account-private-key-file=" + in("accounts.key"), "--root-ca-file=" + in("ca.crt"),
			"--use-service-account-credentials=true",
		}},
		{name: "kube-scheduler", after: api, kind: "exec", args: []string{config, "--leader-elect=false"}},
		{name: "kubelet", after: api, kind: "notify", args: []string{config, "--config=" + in("kubelet.yaml"), "--hostname-override=" + nodeName}},
		// Without a limit of its own for conntrack's table, which would be the machine's.
		{name: "kube-proxy", after: api, kind: "exec", args: []string{
			config, "--hostname-override=" + nodeName, "--proxy-mode=" + string(mode),
			"--conntrack-max-per-core=0", "--conntrack-min=0", "--oom-score-adj=0",
		}},
	}
}

// text is the unit's file.
func (u kubeUnit) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Unit]\nStartLimitIntervalSec=0\n")
	if u.after != "" {
		fmt.Fprintf(&b, "After=%[1]s.service\nWants=%[1]s.service\n", u.after)
	}
	fmt.Fprintf(&b, "[Service]\nType=%s\nTimeoutStartSec=infinity\nRestart=always\nRestartSec=500ms\n", u.kind)
	fmt.Fprintf(&b, "ExecStart=/usr/local/bin/%s %s\n", u.name, strings.Join(u.args, " "))
	if u.ready != "" {
		fmt.Fprintf(&b, "ExecStartPost=/bin/sh -c 'until %s; do sleep 0.2; done'\n", u.ready)
	}
	return b.String()
}

// kubeFiles are the files of a new cluster, with keys of its own: the path in the
// box without the first slash, and the content.
func kubeFiles(cfg KubernetesConfig) (map[string]string, error) {
	ca, err := NewCA("kubernetes")
	if err != nil {
		return nil, err
	}
	accounts, err := NewCA("accounts") // only its key is used
	if err != nil {
		return nil, err
	}
	server, err := ca.Server("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", "127.0.0.1", kubeAPI, node4.Addr().String())
	if err != nil {
		return nil, err
	}
	cert, key, err := pemOf(server)
	if err != nil {
		return nil, err
	}
	_, accountsKey, err := pemOf(accounts.SelfSigned())
	if err != nil {
		return nil, err
	}
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	token := hex.EncodeToString(b)
	admin, err := kubeconfig(ca.PEM(), token)
	if err != nil {
		return nil, err
	}
	kubelet, err := kubeSources.ReadFile("kube/kubelet.yaml")
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"ca.crt":        string(ca.PEM()),
		"apiserver.crt": cert,
		"apiserver.key": key,
		"accounts.key":  accountsKey,
		"tokens":        token + ",admin,admin,system:masters\n",
		"admin.conf":    admin,
		"kubelet.yaml":  string(kubelet),
	}
	all := make(map[string]string)
	for name, content := range files {
		all[path.Join(kubeDir, name)[1:]] = content
	}
	for _, u := range kubeUnits(cfg.ProxyMode) {
		all["etc/systemd/system/"+u.name+".service"] = u.text()
	}
	for name, value := range kubeTunables {
		all[path.Join(kubeDir[1:], "tunables", name)] = value + "\n"
	}
	return all, nil
}

// pemOf is a certificate and its key in PEM.
func pemOf(cert tls.Certificate) (certPEM, keyPEM string, err error) {
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return "", "", errors.New("not an ECDSA key")
	}
	// Kubernetes knows the keys of accounts in this form alone.
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", "", err
	}
	certPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	return certPEM, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})), nil
}

// kubeconfig is the configuration of a client on the node that may do everything.
func kubeconfig(ca []byte, token string) (string, error) {
	type object = map[string]any
	b, err := json.MarshalIndent(object{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []object{{"name": "lab", "cluster": object{
			"server":                     "https://127.0.0.1:6443",
			"certificate-authority-data": base64.StdEncoding.EncodeToString(ca),
		}}},
		"users":           []object{{"name": "admin", "user": object{"token": token}}},
		"contexts":        []object{{"name": "lab", "context": object{"cluster": "lab", "user": "admin"}}},
		"current-context": "lab",
	}, "", "  ")
	return string(b), err
}

// corefile is the configuration of the cluster's DNS servers.
func corefile(more string) string {
	return `.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    cache 30
    loadbalance
` + more + "\n}\n"
}
