package incident

// remedies are what an operator can do about each cause. They name only what
// helps every resolver: musl ignores single-request, use-vc and rotate.
//
// About orphanRemedy: questions that go to one backend are merged by the kernel
// instead of kept, so it no longer matters how long the answer takes.
// kube-proxy notes a client's backend when it translates a question, not when
// the kernel confirms the entry, which leaves a narrow race to the very first
// pair of a client.
const (
	orphanRemedy = "set sessionAffinity: ClientIP on the DNS Service, so that both questions of a pair go to one backend; " +
		"or run NodeLocal DNSCache, which takes DNS out of conntrack"
	collisionRemedy = "keep only one nameserver in the pod's resolv.conf that is translated to the same backends, since musl asks all of them at once from one socket; " +
		"on kernels before 5.6 set sessionAffinity: ClientIP on the DNS Service or run NodeLocal DNSCache"
	tableRemedy = "raise net.netfilter.nf_conntrack_max (where kube-proxy runs, by its conntrack.maxPerCore or conntrack.min, else it sets it back), " +
		"or find what fills the table: conntrack -L | awk '{print $1, $5}' | sort | uniq -c | sort -n | tail"
	chainRemedy   = "raise net.netfilter.nf_conntrack_buckets"
	droppedRemedy = "look for what drops packets on this node: NetworkPolicies (is UDP and TCP port 53 to the DNS servers allowed?), nft list ruleset, routes (ip route get), " +
		"rp_filter, and the drop counters of nstat -az and ip -s link; or kube-proxy still leads to a DNS pod of this node that is gone: see kubectl -n kube-system get endpointslices"
	staleRemedy = "see whether that address still belongs to a ready DNS pod (kubectl -n kube-system get endpointslices); if not, kube-proxy has not followed: restart it on this node, " +
		"and delete what is left with conntrack -D -p udp --orig-port-dst 53"
	noEndpointsRemedy = "nothing is behind that address: see whether the DNS Service has ready endpoints (kubectl -n kube-system get endpointslices, get pods), or whether a rule rejects it"
	silentRemedy      = "look at the DNS server named in the evidence: its log, its CPU limit (throttling), its own upstreams, and what drops packets on the way to it"
	localRemedy       = "look at the DNS server on this node (NodeLocal DNSCache's pod and log), and at what it asks in its turn; " +
		"if the DNS pods listen on another port than 53 (OpenShift: 5353), add it to names.ports"
	slowRemedy = "make answers faster: let the DNS server cache longer and serve stale entries (CoreDNS: the line serve_stale in the block of its cache plugin), look at its upstreams and at its CPU limit; " +
		"end names with a dot or lower ndots, so that fewer questions need the upstream"
	failureRemedy  = "look at the DNS server's log: its upstream fails or refuses; with CoreDNS: forward to upstreams that answer, and the line serve_stale in the block of its cache plugin"
	mismatchRemedy = "make the zone's server answer NOERROR without records (NODATA), not NXDOMAIN or SERVFAIL, for the family that the name does not have; " +
		"until then CoreDNS can answer for it: template IN AAAA <zone> { rcode NOERROR }"
	searchRemedy = "end the name with a dot, or set dnsConfig.options ndots: 1 in the pod, so that musl does not try that search domain; " +
		"or remove the search domain, or its wildcard record"
	truncatedRemedy = "musl before 1.2.4 (Alpine before 3.18) cannot ask by TCP: use a newer image, or make the answer smaller than 512 bytes"
	unknownRemedy   = "see docs/causes.md#unknown"
	uncertainRemedy = "give the agent more CPU when this goes on: the evidence is missing because it did not keep up"
)
