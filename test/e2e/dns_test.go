//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

const dnsPort = 53

// Pods look up Services' names as their /etc/resolv.conf says, and at every address of the cluster's DNS over UDP and
// TCP, where nodes do, too: the API server's Service, one with cluster IPs, and a headless one, whose answer is its
// pods' addresses.
func TestDNS(t *testing.T) {
	pods, hosts := meshPods(t)
	waitForDNS(t)
	t.Cleanup(func() { deletePods(t, "headless-0", "headless-1") })
	var backends []netip.Addr
	for _, p := range createPods(t, spec("headless-0", env.nodes[0].name, behind("headless")),
		spec("headless-1", env.nodes[1].name, behind("headless"))) {
		backends = append(backends, p.addrs...)
	}
	api, err := env.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	createService(t, "headless", func(s *corev1.ServiceSpec) { s.ClusterIP = corev1.ClusterIPNone })
	full := "." + env.namespace + ".svc.cluster.local"
	names := map[string][]netip.Addr{
		"kubernetes.default.svc.cluster.local": clusterIPs(t, api),
		"named" + full:                         clusterIPs(t, createService(t, "named")),
		"headless" + full:                      backends,
	}
	// What the search path of a pod's /etc/resolv.conf makes of short names.
	short := map[string][]netip.Addr{
		"kubernetes.default": names["kubernetes.default.svc.cluster.local"], "named": names["named"+full],
		"headless": names["headless"+full],
	}
	for _, from := range pods {
		resolves(t, from, names, wire.Query{})
		resolves(t, from, short, wire.Query{})
	}
	for _, from := range slices.Concat(pods, hosts) {
		for _, server := range env.record.Plan.DNS() {
			for _, network := range []string{"udp", "tcp"} {
				resolves(t, from, names, wire.Query{Server: netip.AddrPortFrom(server, dnsPort), Net: network})
			}
		}
	}
}

// waitForDNS waits until the cluster's DNS is ready to serve: its pods reach the API server through its Service.
func waitForDNS(t *testing.T) {
	t.Helper()
	must(t, time.Minute, func(ctx context.Context) error {
		d, err := env.client.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas < *d.Spec.Replicas {
			err = fmt.Errorf("%d of %d pods of CoreDNS are ready", d.Status.ReadyReplicas, *d.Spec.Replicas)
		}
		return err
	})
}

// resolves looks names up in a pod, in each family in which they have addresses, until the answers are those wanted:
// the server watches the API, so it learns of a new Service a moment later.
func resolves(t *testing.T, from *pod, names map[string][]netip.Addr, how wire.Query) {
	t.Helper()
	var queries []wire.Query
	var wants [][]netip.Addr
	for name, addrs := range names {
		for _, f := range env.families {
			var want []netip.Addr
			for _, addr := range addrs {
				if familyOf(addr) == f {
					want = append(want, addr)
				}
			}
			if len(want) == 0 {
				continue
			}
			slices.SortFunc(want, netip.Addr.Compare)
			q := how
			q.Name, q.IPv4, q.Timeout = name, f == v4, testenv.Patience(3*time.Second)
			queries, wants = append(queries, q), append(wants, want)
		}
	}
	if err := testenv.Poll(t.Context(), programmedWithin, func(ctx context.Context) error {
		var reply wire.ResolveReply
		if err := from.probe(ctx, wire.ResolveRequest{Queries: queries}, &reply, "resolve"); err != nil {
			return err
		}
		for i, a := range reply.Answers {
			if a.Error != "" || !slices.Equal(a.Addrs, wants[i]) {
				return fmt.Errorf("%s asks %s over %q for %s: %v %s; want %v", from, a.Query.Server, a.Query.Net, a.Query.Name,
					a.Addrs, a.Error, wants[i])
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
