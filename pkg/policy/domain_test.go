package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

func TestDomain(t *testing.T) {
	longest := strings.Repeat("a", 63)
	for text, want := range map[string]Domain{
		"kubernetes.io": "kubernetes.io", "Kubernetes.IO.": "kubernetes.io", "*.kubernetes.io": "*.kubernetes.io",
		"_dns._udp.a-b.example": "_dns._udp.a-b.example", longest + ".example": Domain(longest + ".example"),
		"": "", ".": "", "*": "", "*.": "", "io": "", "*.io": "", "a..b": "", "*.*.io": "", "www.*.io": "", "w*.a.io": "",
		"-a.io": "", "a-.io": "", "ä.io": "", "a b.io": "", "a.io..": "", "a/b.io": "", longest + "a.example": "",
		strings.Repeat("abcdefg.", 32) + "io": "",
	} {
		got, err := ParseDomain(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is the domain %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestDomainMatches has the examples of the API's documentation.
func TestDomainMatches(t *testing.T) {
	names := []string{"kubernetes.io", "www.kubernetes.io", "blog.kubernetes.io", "latest.blog.kubernetes.io",
		"my-kubernetes.io", "wikipedia.org", ".kubernetes.io", "io"}
	for domain, want := range map[Domain][]string{
		"kubernetes.io":      {"kubernetes.io"},
		"blog.kubernetes.io": {"blog.kubernetes.io"},
		"*.kubernetes.io":    {"www.kubernetes.io", "blog.kubernetes.io", "latest.blog.kubernetes.io"},
	} {
		var got []string
		for _, name := range names {
			if domain.Matches(name) {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s matches %v, want %v", domain, got, want)
		}
	}
}

// TestDomainRules: domain names are for egress rules that accept in the tier Admin. Others fail closed.
func TestDomainRules(t *testing.T) {
	pod := Pod{Namespace: "a", Name: "1", UID: "u", Node: "n1", Addrs: []netip.Addr{netip.MustParseAddr("10.0.1.1")}}
	addr, ended := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	peers := []Peer{{Domain: "*.a.example"}, {IPBlock: &IPBlock{CIDR: netip.MustParsePrefix("198.51.100.0/24")}}}
	base := Policy{Tier: model.AdminTier, Name: "p", Egress: []Rule{{Peers: peers}}}
	for name, tc := range map[string]struct {
		change  func(*Policy)
		err     string
		peers   []string // of the rule; "any" for one that denies everything
		domains []string
	}{
		"good": {func(*Policy) {}, "", []string{"192.0.2.1/32", "198.51.100.0/24"}, []string{"*.a.example"}},
		"passes": {func(p *Policy) { p.Egress[0].Verdict = model.Pass }, "egress[0]: domainNames are for rules that accept",
			[]string{"any"}, nil},
		"denies": {func(p *Policy) { p.Egress[0].Verdict = model.Deny }, "egress[0]: domainNames are for rules that accept",
			[]string{"any"}, nil},
		"baseline": {func(p *Policy) { p.Tier = model.BaselineTier },
			"egress[0]: domainNames are for the tier Admin", nil, nil},
		"ingress": {func(p *Policy) { p.Ingress, p.Egress = p.Egress, nil },
			"ingress[0]: domainNames can only be peers of egress rules", nil, nil},
		"invalid": {func(p *Policy) { p.Egress[0].Peers[0].Domain = "a*.example" },
			"egress[0]: peer 0: invalid domain name \"a*.example\": label \"a*\"", nil, nil},
		"combined": {func(p *Policy) { p.Egress[0].Peers[0].NodeSelector = &Selector{} },
			"egress[0]: peer 0: a domain name cannot be combined with others", nil, nil},
	} {
		p := base
		p.Egress = []Rule{{Peers: slices.Clone(peers)}}
		tc.change(&p)
		got := Resolve(World{Node: "n1", Pods: []Pod{pod}, Namespaces: []Namespace{{Name: "a"}}, Policies: []Policy{p},
			Attachments: []model.Attachment{{ContainerID: "c", Pod: model.PodRef{Namespace: "a", Name: "1"}, IPs: pod.Addrs}},
			Names: map[string]model.LearnedName{"x.a.example": {Addrs: []netip.Addr{addr}, Ended: []netip.Addr{ended}},
				"a.example":   {Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.3")}},
				"y.a.example": {Ended: []netip.Addr{addr, netip.MustParseAddr("198.51.100.1")}}}}).Policies[p.ID()]
		var list, kept []string
		for _, side := range []*model.PolicySide{got.Egress, got.Ingress} {
			for _, r := range rulesOf(side) {
				if r.AnyPeer {
					list = append(list, "any")
				}
				for _, peer := range r.Peers {
					list = append(list, peer.String())
				}
				for _, peer := range r.Ended {
					kept = append(kept, peer.String())
				}
			}
		}
		if got.Err != tc.err || !slices.Equal(list, tc.peers) || !slices.Equal(got.Domains, tc.domains) {
			t.Errorf("%s: error %q, peers %v, domains %v; want %q, %v, %v", name, got.Err, list, got.Domains,
				tc.err, tc.peers, tc.domains)
		}
		if name == "good" && !slices.Equal(kept, []string{"192.0.2.2/32"}) {
			t.Errorf("established connections go on to %v, want 192.0.2.2 alone", kept)
		}
	}
}

func rulesOf(side *model.PolicySide) []model.PolicyRule {
	if side == nil {
		return nil
	}
	return side.Rules
}

// TestSetName: a name changes the policies that have it as a peer, and no others.
func TestSetName(t *testing.T) {
	r := NewResolver("n1")
	r.SetNamespace(Namespace{Name: "a"})
	r.SetPod(Pod{Namespace: "a", Name: "1", UID: "u", Node: "n1"})
	r.SetAttachment(model.Attachment{ContainerID: "c", Pod: model.PodRef{Namespace: "a", Name: "1", UID: "u"},
		IPs: []netip.Addr{netip.MustParseAddr("10.0.1.1")}})
	for _, domain := range []Domain{"*.a.example", "b.example"} {
		r.SetPolicy(Policy{Tier: model.AdminTier, Name: string(domain), Egress: []Rule{{Peers: []Peer{{Domain: domain}}}}})
	}
	if c := r.Flush(); len(c.Policies) != 2 {
		t.Fatalf("%d policies select the pod", len(c.Policies))
	}
	learned := model.LearnedName{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, step := range []struct {
		name    string
		learned model.LearnedName
		rules   int // of the first policy; -1 when no policy changes
	}{
		{"c.example", learned, -1}, {"a.example", learned, -1}, {"x.a.example", learned, 1}, {"x.a.example", learned, -1},
		{"y.a.example", learned, -1}, // the same address again
		{"y.a.example", model.LearnedName{}, -1}, {"x.a.example", model.LearnedName{Ended: learned.Addrs}, 1},
		{"x.a.example", model.LearnedName{}, 0},
	} {
		r.SetName(step.name, step.learned)
		changes, rules := r.Flush().Policies, -1
		if p := changes[model.ClusterNetworkPolicy("*.a.example")]; p != nil {
			rules = len(p.Egress.Rules)
		}
		if rules != step.rules || rules < 0 && len(changes) > 0 || len(changes) > 1 {
			t.Errorf("%s is %v: %d policies change, the first to %d rules, want %d", step.name, step.learned, len(changes), rules,
				step.rules)
		}
	}
	if len(r.names) != 2 {
		t.Errorf("the names %v are kept, want those of which something is known", r.names)
	}
}
