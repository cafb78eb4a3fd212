package trace_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/trace"
)

// TestServiceMeetsPolicy traces packets from a pod to a Service with three pods as endpoints, the client among them:
// each bucket leads to its endpoint, policies apply to the endpoint instead of the Service, and replies come from the
// Service's address.
func TestServiceMeetsPolicy(t *testing.T) {
	addr := netip.MustParseAddr
	client, friend, foe, vip, empty := addr(
		"10.0.1.2"), addr("10.0.1.3"), addr("10.0.1.4"), addr("10.96.0.10"), addr("10.96.0.11")
	s := &model.Snapshot{
		Self: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.11")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}},
		Transport: model.Tunnel(model.Geneve), Attachments: map[model.AttachmentKey]model.Attachment{}, Services: map[string]model.Service{}, Policies: map[string]model.Policy{},
	}
	macs := map[netip.Addr]model.MAC{}
	for i, ip := range []netip.Addr{client, friend, foe} {
		a := model.Attachment{ContainerID: ip.String(), IfName: "eth0", Pod: model.PodRef{Namespace: "a", Name: ip.String()},
			OFPort: 16 + uint32(i), MAC: model.MAC{2, 0, 0, 0, 0, byte(i)}, IPs: []netip.Addr{ip}}
		s.Attachments[a.Key()] = a
		macs[ip] = a.MAC
	}
	s.Services["a/web"] = model.Service{Name: "a/web", Affinity: time.Hour, Algorithm: model.HashConnection,
		Ports: []model.ServicePort{{
			Protocol: model.TCP, Port: 80, ClusterIP: vip,
			Cluster: []model.Endpoint{{Addr: client, Port: 8080, Weight: 1}, {Addr: friend, Port: 8080, Weight: 1},
				{Addr: foe, Port: 8080, Weight: 1}},
		}}}
	s.Services["a/empty"] = model.Service{Name: "a/empty", Algorithm: model.HashConnection,
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, ClusterIP: empty}}}
	pods := []netip.Addr{client}
	s.Policies["a/p"] = model.Policy{Name: "a/p",
		Egress: &model.PolicySide{Pods: pods,
			Rules: []model.PolicyRule{{ID: 1, Pods: pods, Peers: []netip.Prefix{netip.PrefixFrom(friend, 32)},
				Ports: []model.PortMatch{{Protocol: model.TCP, Port: 8080, Mask: 0xffff}}}}}}
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	sw, err := trace.Of(desired)
	if err != nil {
		t.Fatal(err)
	}
	// A Service without endpoints is reported under all policies.
	refused := sw.Run(trace.IP(16, client, empty, 6, 40000, 80).WithMACs(macs[client], model.RouterMAC),
		trace.Options{Steps: true})
	if refused.Dropped() || refused.Outputs[0].Port != model.PortGateway ||
		refused.Outputs[0].Packet.Dst() != model.RejectAddr(true) {
		t.Errorf("to a Service without endpoints:\n%s", refused)
	}
	for _, kernel := range []bool{false, true} {
		syn := trace.IP(16, client, vip, 6, 40000, 80).WithMACs(macs[client], model.RouterMAC)
		results := sw.All(syn, trace.Options{Conntrack: &trace.Conntrack{Kernel: kernel}, Steps: true})
		seen := map[string]bool{}
		for i, r := range results {
			if r.Dropped() {
				seen[string(r.Reason())] = true
				continue
			}
			out := r.Outputs[0]
			seen[out.Packet.Dst().String()] = true
			ct := &trace.Conntrack{Kernel: kernel}
			opt := trace.Options{Conntrack: ct, Bucket: func(_ openflow.GroupID, _ int, _ trace.Packet) int { return i }}
			first := sw.Run(syn, opt)
			in := first.Outputs[0]
			if in.Port != out.Port || in.Packet.DstPort() != 8080 {
				t.Fatalf("bucket %d leads to port %d, then to %d:\n%s", i, out.Port, in.Port, r)
			}
			// Sent again before and after the reply, it goes to the same endpoint, and not to the bucket that the group selects
			// now.
			opt.Bucket = func(openflow.GroupID, int, trace.Packet) int { return (i + 1) % 3 }
			back := trace.IP(in.Port, in.Packet.Dst(), in.Packet.Src(), 6, 8080,
				in.Packet.SrcPort()).WithMACs(macs[in.Packet.Dst()], model.RouterMAC).WithTCPFlags(trace.SYN | trace.ACK)
			for _, again := range []trace.Packet{syn, back, syn.WithTCPFlags(trace.ACK)} {
				opt.Steps = true
				r := sw.Run(again, opt)
				want := in.Port
				if again == back {
					want = 16
				}
				if r.Dropped() || r.Outputs[0].Port != want {
					t.Fatalf("kernel %t, bucket %d: %s\n%s", kernel, i, again, r)
				}
				if got := r.Outputs[0].Packet; again == back &&
					(got.Src() != vip || got.SrcPort() != 80 || got.Dst() != client || got.DstPort() != 40000) {
					t.Errorf("the reply arrives as %s", got)
				}
			}
			if in.Packet.Dst() == client && in.Packet.Src() != model.MasqueradeAddr(true) {
				t.Errorf("the pod sees its own address %s as the source", in.Packet.Src())
			}
		}
		if len(results) != 3 || !seen[client.String()] || !seen[friend.String()] || !seen[string(flows.PolicyEgress)] {
			t.Errorf("kernel %t: buckets lead to %v; want the pod itself, the endpoint that the policy allows, and a drop",
				kernel, seen)
		}
	}
}
