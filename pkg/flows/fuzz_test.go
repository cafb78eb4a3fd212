package flows_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-cni/weft/internal/testing/fuzzing"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// odd are the addresses that objects may claim: those of pods, nodes, Services, gateways and Weft's own. pkg/kube lets
// only valid ones through, IPv4 in its own form.
var odd = func() (list []netip.Addr) {
	for _, text := range []string{
		"10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.2.2", "172.30.0.1", "172.30.0.2", "10.96.0.1", "10.96.0.2",
		"0.0.0.0", "127.0.0.1",
		"169.254.169.254", "169.254.87.1", "169.254.87.2", "240.87.0.80", "224.0.0.1", "255.255.255.255", "203.0.113.7",
		"::", "::1", "fe80::1", "ff02::1", "fd44:1::1", "fd44:1::2", "fd96::1", "fd57:6566:7400::1", "2001:db8::1",
	} {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}()

func drawAddr(t *rapid.T, what string) netip.Addr { return rapid.SampledFrom(odd).Draw(t, what) }

func drawAddrs(t *rapid.T, what string) []netip.Addr {
	return rapid.SliceOfN(rapid.SampledFrom(odd), 0, 3).Draw(t, what)
}

// drawRange is any range around such an address.
func drawRange(t *rapid.T, what string) netip.Prefix {
	a := drawAddr(t, what)
	return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, what+"'s length")).Masked()
}

// badRange may also be invalid, or an address inside a range: what is wrong with a policy closes it later.
func badRange(t *rapid.T, what string) netip.Prefix {
	return netip.PrefixFrom(drawAddr(t, what), rapid.IntRange(-1, 130).Draw(t, what+"'s length"))
}

func drawRanges(t *rapid.T, what string) []netip.Prefix {
	list := make([]netip.Prefix, rapid.IntRange(0, 3).Draw(t, what+" count"))
	for i := range list {
		list[i] = drawRange(t, what)
	}
	return list
}

var (
	drawText = rapid.OneOf(rapid.SampledFrom([]string{"", "a", "ns/a", "ns/b", "n1", "n2", "x y", "a,b\n", "é"}),
		rapid.String())
	drawPort = rapid.OneOf(rapid.SampledFrom([]uint16{0, 1, 53, 80, 30080, 65535}), rapid.Uint16())
)

func drawProtocol(t *rapid.T) model.Protocol {
	return rapid.SampledFrom([]model.Protocol{model.TCP, model.UDP, model.SCTP, "", "ICMP"}).Draw(t, "protocol")
}

// oddNode, oddAttachment and oddService are values as no healthy cluster has them: nothing is trusted to have been
// validated.
func oddNode(t *rapid.T) model.Node {
	n := model.Node{Name: rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node"),
		Addrs:    drawAddrs(t, "node address"),
		PodCIDRs: drawRanges(t, "pod CIDR"), Created: rapid.Int64().Draw(t, "created")}
	if rapid.IntRange(0, 9).Draw(t, "mapped") == 0 {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix("::ffff:10.244.0.0/112"))
	}
	return n
}

func oddAttachment(t *rapid.T) model.Attachment {
	return model.Attachment{ContainerID: rapid.SampledFrom([]string{"c1", "c2"}).Draw(t, "container"),
		IfName: drawText.Draw(t, "interface"),
		Pod:    model.PodRef{Namespace: "ns", Name: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "pod")},
		OFPort: rapid.OneOf(rapid.Uint32Range(0, 20), rapid.Uint32()).Draw(t, "port"), MAC: model.MAC{
			byte(rapid.IntRange(0, 3).Draw(t, "mac"))},
		IPs: drawAddrs(t, "pod address")}
}

func oddEndpoints(t *rapid.T) []model.Endpoint {
	list := make([]model.Endpoint, rapid.IntRange(0, 3).Draw(t, "endpoints"))
	for i := range list {
		list[i] = model.Endpoint{Addr: drawAddr(t, "endpoint"), Port: drawPort.Draw(t, "endpoint's port"),
			Weight: rapid.Uint16().Draw(t, "weight")}
	}
	return list
}

func oddService(t *rapid.T) model.Service {
	s := model.Service{
		Name: rapid.SampledFrom([]string{"ns/a", "ns/b", "z"}).Draw(t, "service"),
		Affinity: rapid.SampledFrom([]time.Duration{0, -time.Second, time.Nanosecond, time.Second, 3 * time.Hour,
			1 << 62}).Draw(t, "affinity"),
		Algorithm: rapid.SampledFrom([]model.Algorithm{model.HashConnection, model.HashSource, "", "other"}).Draw(t,
			"algorithm"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		p := model.ServicePort{
			Name: drawText.Draw(t, "port's name"), Protocol: drawProtocol(t), Port: drawPort.Draw(t,
				"port"), NodePort: drawPort.Draw(t, "node port"),
			ClusterIP: drawAddr(t, "cluster IP"), ExternalIPs: drawAddrs(t, "external IP"), LoadBalancerIPs: drawAddrs(t,
				"load balancer IP"),
			LoadBalancerSources: drawRanges(t, "source"), LoadBalancerClosed: rapid.Bool().Draw(t, "closed"),
			InternalLocal: rapid.Bool().Draw(t, "internal local"),
			ExternalLocal: rapid.Bool().Draw(t, "external local"), Elsewhere: rapid.Bool().Draw(t, "elsewhere"),
			Cluster: oddEndpoints(t), Local: oddEndpoints(t),
		}
		for range rapid.IntRange(0, 2).Draw(t, "retained") {
			p.Retained = append(p.Retained, netip.AddrPortFrom(drawAddr(t, "retained"), drawPort.Draw(t, "retained port")))
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func oddPolicy(t *rapid.T) policy.Policy {
	p := policy.Policy{Namespace: "ns", Name: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "policy"),
		PodSelector: oddSelector(t), Log: rapid.Bool().Draw(t, "log"),
		Types: rapid.SliceOfN(rapid.SampledFrom([]policy.Direction{policy.Ingress, policy.Egress, "Sideways"}), 0, 3).Draw(t,
			"types"),
		Err: rapid.SampledFrom([]string{"", "", "", "bad"}).Draw(t, "error")}
	for range rapid.IntRange(0, 2).Draw(t, "ingress rules") {
		p.Ingress = append(p.Ingress, oddRule(t))
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress rules") {
		p.Egress = append(p.Egress, oddRule(t))
	}
	return p
}

func oddSelector(t *rapid.T) policy.Selector {
	switch rapid.IntRange(0, 3).Draw(t, "selector") {
	case 0:
		return policy.Selector{MatchLabels: map[string]string{"app": rapid.SampledFrom([]string{"", "a", "b"}).Draw(t,
			"label")}}
	case 1:
		return policy.Selector{MatchExpressions: []policy.Requirement{{Key: "app", Values: []string{"a"},
			Operator: rapid.SampledFrom([]policy.Operator{policy.In, policy.NotIn, policy.Exists, policy.DoesNotExist,
				"Like"}).Draw(t, "operator")}}}
	}
	return policy.Selector{}
}

func oddRule(t *rapid.T) policy.Rule {
	var r policy.Rule
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		var p policy.Peer
		if s := oddSelector(t); rapid.Bool().Draw(t, "pod selector") {
			p.PodSelector = &s
		}
		if s := oddSelector(t); rapid.Bool().Draw(t, "namespace selector") {
			p.NamespaceSelector = &s
		}
		if rapid.Bool().Draw(t, "block") {
			p.IPBlock = &policy.IPBlock{CIDR: drawRange(t, "block"), Except: drawRanges(t, "except")}
			if rapid.IntRange(0, 9).Draw(t, "bad block") == 0 {
				p.IPBlock.CIDR = badRange(t, "block")
				p.IPBlock.Except = append(p.IPBlock.Except, badRange(t, "except"))
			}
		}
		r.Peers = append(r.Peers, p)
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		r.Ports = append(r.Ports, policy.Port{Protocol: drawProtocol(t), Number: drawPort.Draw(t, "number"),
			Name: rapid.SampledFrom([]string{"", "", "web"}).Draw(t, "name"), EndPort: drawPort.Draw(t, "end")})
	}
	return r
}

func oddPod(t *rapid.T) policy.Pod {
	p := policy.Pod{Namespace: "ns", Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "pod"),
		Node:  rapid.SampledFrom([]string{"n1", "n2", ""}).Draw(t, "node"),
		Addrs: drawAddrs(t, "podIP"), HostNetwork: rapid.Bool().Draw(t, "host network"), Done: rapid.Bool().Draw(t, "done"),
		Terminating: rapid.Bool().Draw(t, "terminating"), Created: rapid.Int64().Draw(t, "created")}
	if rapid.Bool().Draw(t, "labels") {
		p.Labels = map[string]string{"app": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "label")}
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		p.Ports = append(p.Ports, policy.ContainerPort{Name: "web", Protocol: drawProtocol(t), Number: drawPort.Draw(t,
			"number")})
	}
	return p
}

func drawChange(t *rapid.T) state.Change {
	switch rapid.IntRange(0, 14).Draw(t, "change") {
	case 0, 1:
		return state.SetNode{Node: oddNode(t)}
	case 2:
		return state.DeleteNode{Name: oddNode(t).Name}
	case 3, 4:
		return state.SetAttachment{Attachment: oddAttachment(t)}
	case 5:
		return state.DeleteAttachment{Key: oddAttachment(t).Key()}
	case 6, 7:
		return state.SetJoinedService{Service: oddService(t)}
	case 8:
		return state.DeleteService{Name: oddService(t).Name}
	case 9, 10:
		return state.SetPolicy{Policy: oddPolicy(t)}
	case 11:
		return state.SetPod{Pod: oddPod(t)}
	case 12:
		return state.SetNamespace{Namespace: policy.Namespace{Name: "ns", Log: rapid.Bool().Draw(t, "log")}}
	case 13:
		return state.SetServiceCIDRs{Configured: rapid.Bool().Draw(t, "configured"), CIDRs: drawRanges(t, "Service range")}
	}
	return rapid.SampledFrom([]state.Change{
		state.SetTransport{Transport: model.Tunnel(model.VXLAN)}, state.SetTransport{Transport: model.Tunnel(model.Geneve)},
		state.SetKernelDatapath{Kernel: true}, state.SetKernelDatapath{},
		state.SetKeepEstablished{Keep: true}, state.SetKeepEstablished{}, state.SetTime{Now: time.Unix(1_700_000_000, 0)},
		state.DeletePod{Namespace: "ns", Name: "a"},
		state.DeletePolicy{ID: model.NetworkPolicy("ns", "p")}, state.DeleteNamespace{Name: "ns"}, state.SetClusterCIDRs{
			CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	}).Draw(t, "setting")
}

// oddObjects: whatever objects say, the compiler does not panic; the table reached step by step is the one compiled at
// once, and so are the owners that fail; each flow belongs to an object that exists, is one line, and reads back as
// itself.
func oddObjects(t *rapid.T) {
	c, store := flows.NewCompiler(), state.New("n1")
	failing := map[model.Owner]bool{}
	for range rapid.IntRange(1, 12).Draw(t, "rounds") {
		for range rapid.IntRange(1, 4).Draw(t, "at once") {
			store.Apply(drawChange(t))
		}
		s, owners := store.Take()
		owners = c.Dirty(s, owners)
		_, failed := c.Update(s, owners)
		for _, o := range owners {
			delete(failing, o)
		}
		for _, e := range failed {
			failing[e.Owner] = true
		}
		full, err := flows.Compile(s)
		if full.String() != c.Desired().String() {
			t.Fatalf("incremental:\n%s\nfull:\n%s", c.Desired(), full)
		}
		if got, want := fmt.Sprint(failing), fmt.Sprint(failuresOf(err)); got != want {
			t.Fatalf("failing step by step: %s; at once: %s", got, want)
		}
		if err != nil && (failing[model.PipelineOwner] || failing[model.SelfOwner]) {
			t.Fatalf("the node itself fails because of others' objects: %v", err)
		}
		exist := flows.Owners(s)
		for key, f := range full.Flows {
			if !slices.Contains(exist, f.Owner) {
				t.Fatalf("%s belongs to %s, which does not exist", f, f.Owner)
			}
			if e, err := openflow.Parse(f.Flow.String()); err != nil || e.Flow != f.Flow || key != f.Key {
				t.Fatalf("%s reads back as %s, %v", f, e, err)
			}
		}
		for id, g := range full.Groups {
			if back, err := openflow.ParseGroup(g.Group.String()); err != nil || back != g.Group || id != g.ID ||
				!slices.Contains(exist, g.Owner) {
				t.Fatalf("%s of %s reads back as %s, %v", g, g.Owner, back, err)
			}
		}
		flows.NewAudit(s, nil, nil)
	}
}

func failuresOf(err error) map[model.Owner]bool {
	failing := map[model.Owner]bool{}
	var list interface{ Unwrap() []error }
	if errors.As(err, &list) {
		for _, e := range list.Unwrap() {
			if one := (*flows.OwnerError)(nil); errors.As(e, &one) {
				failing[one.Owner] = true
			}
		}
	}
	return failing
}

func TestOddObjects(t *testing.T) { rapid.Check(t, oddObjects) }

func FuzzOddObjects(f *testing.F) { fuzzing.Property(f, oddObjects) }
