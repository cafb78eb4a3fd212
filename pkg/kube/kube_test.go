package kube_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/state"
)

func object(name string, cidrs []string, addrs ...corev1.NodeAddress) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs},
		Status: corev1.NodeStatus{Addresses: addrs}}
}

func internal(addr string) corev1.NodeAddress {
	return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addr}
}

func TestNode(t *testing.T) {
	for _, tc := range []struct {
		name   string
		object *corev1.Node
		want   model.Node
		bad    bool
	}{
		{
			name: "dual stack, the first of each family, in the kubelet's order",
			object: object("n", []string{"fd44:1::/64", "10.244.1.7/24", "10.9.0.0/24"},
				corev1.NodeAddress{Type: corev1.NodeHostName, Address: "n"}, internal("fd30::1"), internal("172.30.0.1"), internal(
					"172.30.0.2")),
			want: model.Node{Name: "n", Addrs: addrs("fd30::1", "172.30.0.1"), PodCIDRs: cidrs("fd44:1::/64", "10.244.1.0/24")},
		},
		{name: "nothing yet", object: object("n", nil), want: model.Node{Name: "n"}},
		{
			name:   "what is bad is left out and named",
			object: object("n", []string{"not a range", "10.244.1.0/24"}, internal("?"), internal("172.30.0.1")),
			want:   model.Node{Name: "n", Addrs: addrs("172.30.0.1"), PodCIDRs: cidrs("10.244.1.0/24")}, bad: true,
		},
		{
			name:   "an IPv4-mapped address is IPv4, and a zone does not belong to an address",
			object: object("n", nil, internal("fe80::1%x\nflow add table=0 actions=NORMAL"), internal("::ffff:172.30.0.1")),
			want:   model.Node{Name: "n", Addrs: addrs("172.30.0.1")}, bad: true,
		},
	} {
		got, err := kube.Node(tc.object)
		if (err != nil) != tc.bad {
			t.Errorf("%s: error %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func cidrs(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestWatcher(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}, Spec: corev1.PodSpec{
		NodeName: "n1", HostNetwork: true}}
	client := fakekube.New(object("n1", nil), pod)
	changes := make(chan state.Change, 10)
	w := watch(t, client, func(c state.Change) {
		switch c.(type) {
		case state.SetPod, state.SetPeerNode: // TestPolicyObjects looks at these
		case state.SetZone: // TestServicesOfACluster has zones
		default:
			changes <- c
		}
	})
	synced(t, w)
	next := func() state.Change {
		select {
		case c := <-changes:
			return c
		case <-time.After(time.Minute):
			t.Fatal("no change within a minute")
			return nil
		}
	}
	if c, ok := next().(state.SetNode); !ok || c.Node.Name != "n1" {
		t.Errorf("first change %+v", c)
	}
	if _, err := client.CoreV1().Nodes().Update(t.Context(), object("n1", []string{"10.244.1.0/24"}),
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if c, ok := next().(state.SetNode); !ok || !slices.Equal(c.Node.PodCIDRs, cidrs("10.244.1.0/24")) {
		t.Errorf("change after an update: %+v", c)
	}
	if err := client.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if c := next(); c != (state.DeleteNode{Name: "n1"}) {
		t.Errorf("change after a deletion: %+v", c)
	}
	want := []model.Pod{{PodRef: model.PodRef{Namespace: "ns", Name: "p", UID: "u"}, HostNetwork: true}}
	if got := w.Pods(); !reflect.DeepEqual(got, want) {
		t.Errorf("pods = %+v", got)
	}
}

// TestSyncedMeansEmitted: with a slow receiver, all nodes of the start must have been handed on before WaitSynced
// returns: the first programming deletes the flows of nodes that it does not know.
func TestSyncedMeansEmitted(t *testing.T) {
	const count = 500
	client := fakekube.New()
	for i := range count {
		if err := client.Tracker().Add(object(fmt.Sprintf("n%d", i), nil)); err != nil {
			t.Fatal(err)
		}
	}
	var emitted atomic.Int32
	w := watch(t, client, func(c state.Change) {
		time.Sleep(200 * time.Microsecond) // a busy machine
		if _, ok := c.(state.SetNode); ok {
			emitted.Add(1)
		}
	})
	synced(t, w)
	if got := emitted.Load(); got != count {
		t.Errorf("synced with %d of %d nodes handed on", got, count)
	}
}

// TestPublish: what a node publishes of its underlay is what the others read; what it takes back is gone. The agent may
// patch the status of its Node object only.
func TestPublish(t *testing.T) {
	client := fakekube.New(object("n1", nil))
	uplink, err := model.ParseUplink("172.30.0.1/24@02:00:00:00:00:01")
	if err != nil {
		t.Fatal(err)
	}
	device := model.WireGuard{Key: model.WireGuardKey{1, 31: 7}, Port: 51871}
	for _, want := range []model.Node{
		{Underlay: []model.Uplink{uplink}, ReceivesDirect: true}, {Underlay: []model.Uplink{uplink}}, {ReceivesDirect: true},
		{ReceivesWireGuard: true, WireGuard: device}, {ReceivesDirect: true, ReceivesWireGuard: true, WireGuard: device},
		{WireGuard: device}, {ReceivesIPIP: true}, {ReceivesDirect: true, ReceivesIPIP: true}, {},
	} {
		want.Name = "n1"
		client.ClearActions()
		if err := kube.Publish(t.Context(), client, want); err != nil {
			t.Fatal(err)
		}
		if a := client.Actions(); len(a) != 1 || a[0].GetVerb() != "patch" || a[0].GetSubresource() != "status" {
			t.Errorf("actions %+v, want one patch of the status", a)
		}
		object, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := kube.Node(object)
		if err != nil || !slices.Equal(got.Underlay, want.Underlay) || got.ReceivesDirect != want.ReceivesDirect ||
			got.ReceivesIPIP != want.ReceivesIPIP || got.ReceivesWireGuard != want.ReceivesWireGuard ||
			got.WireGuard != want.WireGuard {
			t.Errorf("%+v: read as %+v, %v", want, got, err)
		}
	}
	key := device.Key.String()
	for _, wrong := range []map[string]string{
		{kube.UnderlayAnnotation: "172.30.0.1/24"}, {kube.WireGuardAnnotation: key}, {kube.WireGuardAnnotation: key + "@0"},
		{kube.WireGuardAnnotation: key[4:] + "@51871"}, {kube.WireGuardAnnotation: model.WireGuardKey{}.String() + "@51871"},
	} {
		bad := object("n1", nil)
		bad.Annotations = map[string]string{kube.ReceivesAnnotation: "yes"}
		maps.Copy(bad.Annotations, wrong)
		if got, err := kube.Node(bad); err == nil || len(got.Underlay) > 0 || got.ReceivesDirect || got.ReceivesWireGuard ||
			got.WireGuard != (model.WireGuard{}) {
			t.Errorf("%v: %+v, %v", wrong, got, err)
		}
	}
	if err := kube.Publish(t.Context(), client, model.Node{Name: "missing"}); err == nil {
		t.Error("a node that does not exist gave no error")
	}
}

func TestSetNetworkAvailable(t *testing.T) {
	client := fakekube.New(object("n1", nil))
	for range 2 {
		if err := kube.SetNetworkAvailable(t.Context(), client, "n1"); err != nil {
			t.Fatal(err)
		}
	}
	n, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Status.Conditions) != 1 || n.Status.Conditions[0].Type != corev1.NodeNetworkUnavailable ||
		n.Status.Conditions[0].Status != corev1.ConditionFalse {
		t.Errorf("conditions = %+v", n.Status.Conditions)
	}
	if err := kube.SetNetworkAvailable(t.Context(), client, "missing"); err == nil {
		t.Error("a node that does not exist gave no error")
	}
}
