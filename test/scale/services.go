package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	servicePort  = 80
	endpointPort = 8080
)

// endpoint is where a Service leads.
type endpoint struct {
	addr netip.Addr
	node string
	pod  string
}

// service is a Service as an API server completes it.
func service(i int) *corev1.Service {
	ip := clusterIP(i).String()
	cluster, single := corev1.ServiceInternalTrafficPolicyCluster, corev1.IPFamilyPolicySingleStack
	name := fmt.Sprint("service", i)
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i/100), Name: name, UID: uid("service", i),
			Labels: map[string]string{"app": name}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{
				corev1.IPv4Protocol}, IPFamilyPolicy: &single,
			Selector: map[string]string{"app": name}, SessionAffinity: corev1.ServiceAffinityNone,
			InternalTrafficPolicy: &cluster,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: servicePort,
				TargetPort: intstr.FromInt32(endpointPort)}},
		},
	}
}

// clusterIP is the address of a Service; the range's first addresses are for others.
func clusterIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(97 + i>>16), byte(i >> 8), byte(i)})
}

func uid(kind string, i int) types.UID { return types.UID(fmt.Sprintf("%s-%d", kind, i)) }

// slice is the Service's EndpointSlice.
func slice(s *corev1.Service, endpoints ...endpoint) *discoveryv1.EndpointSlice {
	yes, no, name, tcp, port := true, false, "http", corev1.ProtocolTCP, int32(endpointPort)
	o := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name + "-x7k2p",
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Name,
				discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": s.Name},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: s.Name, UID: s.UID,
				Controller: &yes, BlockOwnerDeletion: &yes}},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}},
	}
	for _, e := range endpoints {
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{e.addr.String()}, NodeName: &e.node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: e.pod, UID: types.UID(e.pod)},
		})
	}
	return o
}

// remote is one of the endpoints on other nodes.
func remote(i int) endpoint {
	at := 1 + i%otherNodes
	return endpoint{addr: remoteAddr(at, i/otherNodes%220), node: fmt.Sprint("n", at), pod: fmt.Sprint("endpoint", i)}
}

func (n *node) fillServices(count int) error {
	var services, slices []apiserver.Object
	for i := range count {
		s := service(i)
		services = append(services, s)
		slices = append(slices, slice(s, remote(2*i), remote(2*i+1)))
	}
	if err := n.api.Apply(apiserver.Services, services); err != nil {
		return err
	}
	return n.api.Apply(apiserver.EndpointSlices, slices)
}

// measureServices measures many Services, and one more of them.
func measureServices(ctx context.Context, n *node, opt options, r *report) error {
	r.Mix = fmt.Sprintf("%d Services (ClusterIP, one TCP port) with 2 endpoints each, %d nodes; no pods but the three "+
		"of this node", opt.services, otherNodes+1)
	// Few Services first: the pods need an agent, and one more is measured among few, too.
	if _, err := n.start(ctx); err != nil {
		return err
	}
	if err := n.attach([]*corev1.Pod{localPod("scale", "client", nil), localPod("scale", "server1", nil),
		localPod("scale", "server2", nil)}); err != nil {
		return err
	}
	for _, p := range n.pods {
		if err := p.serve(endpointPort); err != nil {
			return err
		}
	}
	const few = 100
	if err := n.fillServices(few); err != nil {
		return err
	}
	if err := n.programmed(ctx, few); err != nil {
		return err
	}
	if err := n.oneMore(ctx, opt, r, " among 100", 0); err != nil {
		return err
	}
	if err := n.halt(); err != nil {
		return err
	}
	if err := n.empty(ctx); err != nil {
		return err
	}
	if err := n.fillServices(opt.services); err != nil {
		return err
	}
	if err := n.coldStart(ctx, r, 3*time.Second, 100); err != nil {
		return err
	}
	if err := n.oneMore(ctx, opt, r, fmt.Sprint(" among ", opt.services), opt.services); err != nil {
		return err
	}
	return n.restart(ctx, r, 100)
}

// serviceFlows are those of a Service with one port, on the userspace datapath: one for its port, and one for later
// fragments, which have none.
const serviceFlows = 2

// oneMore measures a Service that is added, and one whose endpoints change. The new ones have numbers from first on.
func (n *node) oneMore(ctx context.Context, opt options, r *report, among string, first int) error {
	c, err := n.watch(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	client := n.pods[0]
	var programmed, connected, changed []time.Duration
	most := map[string]int{}
	for i := range opt.rounds {
		s := service(30000 + first + i)
		vip := netip.AddrPortFrom(clusterIP(30000+first+i), servicePort)
		// A Service without endpoints, as it is when it is new.
		if _, _, _, err := c.after(ctx, func() error { return n.api.Put(apiserver.Services, s) }); err != nil {
			return err
		}
		// The switch has seen a packet to it, and remembers what became of it.
		if _, err := client.ns.Dial(podns.TCP, vip, 100*time.Millisecond); err != nil {
			return err
		}
		endpoints := make([]endpoint, 0, 2)
		for _, p := range n.pods[1:] {
			endpoints = append(endpoints, endpoint{addr: p.ip, node: nodeName, pod: p.object.Name})
		}
		// The connections are tried beside it, from the write on.
		answer := make(chan result, 1)
		took, flows, groups, err := c.after(ctx, func() error {
			go func() { answer <- firstConnection(ctx, client.ns, vip, time.Now()) }()
			return n.api.Put(apiserver.EndpointSlices, slice(s, endpoints...))
		})
		if err != nil {
			return err
		}
		first := <-answer
		if first.err != nil {
			return first.err
		}
		programmed, connected = append(programmed, took), append(connected, first.took)
		most["flows"], most["groups"] = max(most["flows"], flows), max(most["groups"], groups)

		took, flows, groups, err = c.after(ctx, func() error {
			return n.api.Put(apiserver.EndpointSlices, slice(s, endpoints[0], remote(i)))
		})
		if err != nil {
			return err
		}
		changed = append(changed, took)
		most["changed"] = max(most["changed"], flows+groups)
	}
	r.times("one more Service"+among+", from the write of its endpoints to the switch", programmed, 20*time.Millisecond)
	r.times("one more Service"+among+", from the write of its endpoints to the first connection of a pod", connected,
		50*time.Millisecond)
	r.times("one Service of those changes an endpoint, to the switch", changed, 20*time.Millisecond)
	r.number("flows that one more Service changed in the switch, at most", float64(most["flows"]), "", serviceFlows)
	r.number("groups that one more Service changed in the switch, at most", float64(most["groups"]), "", 1)
	r.number("flows and groups that one Service changed in the switch, at most", float64(most["changed"]), "", 1)
	if most["flows"] > serviceFlows || most["groups"] > 1 || most["changed"] > 1 {
		return fmt.Errorf(
			"one Service changed %d flows and %d groups, and %d when it changed: want its own only, %d, 1 and 1",
			most["flows"], most["groups"], most["changed"], serviceFlows)
	}
	return nil
}

// result is a time or an error.
type result struct {
	took time.Duration
	err  error
}

// firstConnection tries until the Service answers.
func firstConnection(ctx context.Context, from podns.Namespace, to netip.AddrPort, begun time.Time) result {
	for time.Since(begun) < deadline && ctx.Err() == nil {
		a, err := from.Dial(podns.TCP, to, 50*time.Millisecond)
		if err != nil {
			return result{err: err}
		}
		if a.Outcome == podns.Answered {
			return result{took: time.Since(begun)}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return result{err: fmt.Errorf("no connection to %s within %s", to, deadline)}
}
