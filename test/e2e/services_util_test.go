//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// servicePort is the port of the Services here, for TCP and UDP.
const servicePort = 80

// programmedWithin bounds the time from an object's write until every node serves it, on a busy machine.
const programmedWithin = 30 * time.Second

// behind marks a pod as an endpoint of the Service of that name.
func behind(service string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels["service"] = service }
}

// createService makes a Service in front of the pods that are behind it, with all of the cluster's families. The test's
// end deletes it.
func createService(t *testing.T, name string, changes ...func(*corev1.ServiceSpec)) *corev1.Service {
	t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector:       map[string]string{"service": name},
			IPFamilyPolicy: ptr(corev1.IPFamilyPolicyPreferDualStack),
			Ports: []corev1.ServicePort{
				{Name: "tcp", Port: servicePort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(echoPort)},
				{Name: "udp", Port: servicePort, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(echoPort)},
			},
		},
	}
	for _, change := range changes {
		change(&s.Spec)
	}
	services := env.client.CoreV1().Services(env.namespace)
	s, err := services.Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create Service %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(30*time.Second))
		defer cancel()
		if err := ignoreNotFound(services.Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
			t.Errorf("delete Service %s: %v", name, err)
		}
	})
	if want := len(env.families); s.Spec.ClusterIP != corev1.ClusterIPNone && len(s.Spec.ClusterIPs) != want {
		t.Fatalf("Service %s has the cluster IPs %v, want %d", name, s.Spec.ClusterIPs, want)
	}
	return s
}

// nodePorts gives a Service node ports.
func nodePorts(policy corev1.ServiceExternalTrafficPolicy) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, policy }
}

// serviceProtos are the protocols of the Services here, in the order of their ports.
var serviceProtos = []wire.Proto{wire.TCP, wire.UDP}

// clusterTargets are a Service's ports at its cluster IPs.
func clusterTargets(t *testing.T, s *corev1.Service) []wire.Target {
	t.Helper()
	var targets []wire.Target
	for _, addr := range clusterIPs(t, s) {
		for _, proto := range serviceProtos {
			targets = append(targets, target(s.Name, proto, addr, servicePort, smallPayload))
		}
	}
	return targets
}

// nodeTargets are a Service's node ports at a node's addresses.
func nodeTargets(s *corev1.Service, n node) []wire.Target {
	var targets []wire.Target
	for _, addr := range n.addrs {
		for i, proto := range serviceProtos {
			targets = append(targets, target(fmt.Sprintf("%s at %s", s.Name, n.name), proto, addr,
				uint16(s.Spec.Ports[i].NodePort), smallPayload))
		}
	}
	return targets
}

func clusterIPs(t *testing.T, s *corev1.Service) []netip.Addr {
	t.Helper()
	var addrs []netip.Addr
	for _, text := range s.Spec.ClusterIPs {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatalf("cluster IP of %s: %v", s.Name, err)
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

// programmed waits until check says that what was dialled went as expected, from everywhere.
func programmed[D comparableDialer](t *testing.T, wanted map[D][]wire.Target, check func(wire.Result) error) {
	t.Helper()
	start := time.Now()
	for from, targets := range wanted {
		var hasty []wire.Target
		for _, to := range targets {
			to.Attempts, to.Timeout = 1, testenv.Patience(time.Second)
			hasty = append(hasty, to)
		}
		must(t, programmedWithin, func(ctx context.Context) error {
			reply, err := from.dial(ctx, wire.DialRequest{Targets: hasty})
			if err != nil {
				return err
			}
			for _, r := range reply.Results {
				if err := check(r); err != nil {
					return fmt.Errorf("%s → %s (%s) by %s: %w", from, r.Target.Name, r.Target.Addr, r.Target.Proto, err)
				}
			}
			return nil
		})
	}
	t.Logf("programmed after %.1f s", time.Since(start).Seconds())
}

func reached(r wire.Result) error {
	if !r.OK() {
		return fmt.Errorf("not reached: %s", r.Error)
	}
	return nil
}

// once makes each target count at its first attempt.
func once[D comparableDialer](wanted map[D][]wire.Target) map[D][]wire.Target {
	strict := map[D][]wire.Target{}
	for from, targets := range wanted {
		for _, to := range targets {
			to.Attempts = 1
			strict[from] = append(strict[from], to)
		}
	}
	return strict
}
