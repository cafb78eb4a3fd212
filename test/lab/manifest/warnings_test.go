package manifest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/test/lab/manifest"
)

// TestWarnings: what has no effect is told with file, line and object, and stops nothing.
func TestWarnings(t *testing.T) {
	const objects = `apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: none}
spec: {selector: {app: wbe}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: ports}
spec:
  selector: {app: web}
  ports:
  - {name: a, port: 80}
  - {name: b, port: 81, targetPort: htp}
  - {name: c, port: 82, targetPort: http}
  - {name: d, port: 53, protocol: UDP}
  - {name: e, port: 54}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: none}
spec: {podSelector: {matchLabels: {app: wbe}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: peers}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {matchLabels: {app: wbe}}}, {podSelector: {}}]
    ports: [{port: htp}, {port: http}]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]
    ports: [{port: dns, protocol: UDP}]
  - ports: [{port: http}]
`
	dir := write(t, map[string]string{"f.yaml": objects})
	set, err := manifest.Load([]string{dir}, manifest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range set.Warnings {
		got = append(got, strings.TrimPrefix(w.Error(), dir+"/"))
	}
	const ports = "53/UDP, 80/TCP (http)"
	want := []string{
		"f.yaml:9: Service shop/none spec.selector: no pod of namespace shop has the labels app=wbe",
		"f.yaml:18: Service shop/ports spec.ports[1].targetPort: none of the pods has a port htp/TCP; they have " + ports,
		"f.yaml:21: Service shop/ports spec.ports[4].targetPort: none of the pods has a port 54/TCP; they have " + ports,
		"f.yaml:26: NetworkPolicy shop/none spec.podSelector: no pod of namespace shop is selected (app=wbe)",
		"f.yaml:34: NetworkPolicy shop/peers spec.ingress[0].from[0]: the selectors match no pod",
		"f.yaml:35: NetworkPolicy shop/peers spec.ingress[0].ports[0].port: none of the pods has a port htp/TCP; they have " +
			ports,
		"f.yaml:38: NetworkPolicy shop/peers spec.egress[0].ports[0].port: none of the pods has a port dns/UDP; they have " +
			ports,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
