//go:build integration

package datapath

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

// fieldPolicies has every field of the API. Most of them select pods of namespace x; y and z are other teams.
const fieldPolicies = `---
# Names of ports, which are other numbers in other pods; a selector, and both selectors together.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: x}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: cli}}}, {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: cli}}}]
      ports: [{port: http}, {port: dns, protocol: UDP}, {port: 9000, protocol: SCTP}]
---
# A range, a protocol alone, and everybody of all namespaces; expressions.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: x}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [db, nothing]}, {key: spare, operator: DoesNotExist}]}
  ingress:
    - from: [{namespaceSelector: {}}]
      ports: [{port: 5432, endPort: 5433}, {protocol: UDP}]
    - from: [{ipBlock: {cidr: "fd10:244::/32", except: ["fd10:244::/64"]}}]
      ports: [{port: 5440, protocol: TCP}]
---
# Ranges of addresses without some, in both families; names of ports in egress.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cli, namespace: x}
spec:
  podSelector: {matchLabels: {app: cli}, matchExpressions: [{key: tier, operator: Exists}]}
  policyTypes: [Egress]
  egress:
    - to: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.0/24]}}, {ipBlock: {cidr: "fd10:244::/32", except: ["fd10:244:0:1::/64"]}}]
    - to: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: http}]
---
# Both directions, and no list.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: job, namespace: x}
spec: {podSelector: {matchLabels: {app: job}}, policyTypes: [Ingress, Egress]}
---
# An empty rule allows all; an empty list of egress rules is none, so the type is Ingress alone.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: lone, namespace: x}
spec: {podSelector: {matchLabels: {app: lone}}, ingress: [{}], egress: []}
---
# Without policyTypes, egress rules make it both: nothing comes in.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: both, namespace: y}
spec:
  podSelector: {matchLabels: {app: srv}}
  egress: [{to: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [blue]}]}}]}]
---
# An empty list of peers is everybody; of ports, all.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: empty, namespace: z}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [], ports: [{protocol: UDP}]}, {from: [{namespaceSelector: {matchLabels: {team: red}}}], ports: []}]
---
# Another for the same pods adds to it; of its types it is about one, whatever its other list says.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: more, namespace: z}
spec:
  podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [srv]}]}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]
  egress: [{to: [{podSelector: {}}]}]
`

// fieldPod is a pod with ports that have names.
func fieldPod(namespace, name, node, labels string, web, dns int) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, labels: {%s}}
spec:
  nodeName: %s
  containers: [{name: c, ports: [{name: http, containerPort: %d}, {name: dns, containerPort: %d, protocol: UDP}, {name: sctp, containerPort: 9000, protocol: SCTP}, {name: sql, containerPort: 5432}, {name: last, containerPort: 5440}]}]
`, namespace, name, labels, node, web, dns)
}

// Every field of the API, from every pod to every port of every pod and Service, over every protocol that the kernel
// has, in both families: packets do what policy.Eval says. For Services, the endpoint's address and port count.
func TestPolicyMatrix(t *testing.T) {
	text := namespaceManifest("x", "team: green") + namespaceManifest("y", "team: red") + namespaceManifest("z", "") +
		fieldPod("x", "web-1", "node1", "app: web", 8080, 5353) + fieldPod("x", "web-2", "node2", "app: web", 8081, 5354) +
		fieldPod("x", "db-1", "node1", "app: db", 5433, 5353) + fieldPod("x", "db-2", "node2", "app: db, spare: yes-it-is",
		5433, 5353) +
		fieldPod("x", "cli-1", "node1", "app: cli", 8080, 5353) + fieldPod("x", "cli-2", "node2", "app: cli, tier: front",
		8080, 5353) +
		fieldPod("x", "job", "node1", "app: job", 8080, 5353) + fieldPod("x", "lone", "node2", "app: lone", 8080, 5353) +
		fieldPod("y", "cli", "node1", "app: cli", 8080, 5353) + fieldPod("y", "srv", "node2", "app: srv", 8080, 5353) +
		fieldPod("z", "any", "node1", "app: any", 8080, 5353) +
		namedService("x", "web") + namedService("x", "job") + namedService("z", "any")
	w := upWalled(t, "polmtx", map[string]string{"pods.yaml": text, "policies.yaml": fieldPolicies})
	w.enforces(t, "node1", "x", "db", "job", "web")
	w.enforces(t, "node2", "x", "cli", "lone", "web")
	r := w.Probe()
	count := map[string]int{}
	for _, p := range r.Probes {
		to := r.Targets[p.To]
		if p.State == lab.Differs {
			t.Errorf("%s to %s at %s: expected %s, %s %s (%s): %s\n%s", p.From, to, to.Addr, p.Expected, p.Outcome, p.Reached,
				p.Detail, p.Why, p.Trace)
		}
		if p.State == lab.NoProtocol && to.Proto != podns.SCTP {
			t.Errorf("%s to %s: not probed", p.From, to)
		}
		count[fmt.Sprintf("%s %s %s", to.Kind, to.Proto, p.Expected)]++
	}
	// The matrix says something: of each kind there is enough of both.
	for _, kind := range []string{"pod TCP", "pod UDP", "pod SCTP", "service TCP", "service UDP"} {
		for _, expected := range []lab.Expectation{lab.Allow, lab.Deny} {
			if n := count[kind+" "+string(expected)]; n < 20 {
				t.Errorf("%d of %s are expected: %s, want at least 20", n, kind, expected)
			}
		}
	}
	if r.Problem != "" {
		t.Error(r.Problem)
	}
	t.Logf("%d cells in %.1f s, the slowest answer after %.3f s: %v; %v", len(r.Probes), r.Seconds, r.Slowest, r.Counts,
		strings.TrimPrefix(fmt.Sprint(count), "map"))
}

// namedService leads to ports by their names.
func namedService(namespace, app string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: %[2]s}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: %[2]s}, ports: [{name: http, port: 80, targetPort: http}, {name: sql, port: 5432, targetPort: 5432}, {name: dns, port: 53, targetPort: dns, protocol: UDP}]}
`, namespace, app)
}
