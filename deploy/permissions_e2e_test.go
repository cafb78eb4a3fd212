//go:build e2e

package deploy

import (
	"os"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// On the running cluster, with a token like the one that the agent has: it may set one condition of its own node,
// nothing else there, nothing of another one, and read no Secret. A token that is not bound to a pod changes no node.
func TestAgentIsConfinedToItsNode(t *testing.T) {
	kubeconfig := os.Getenv("WEFT_KUBECONFIG")
	if kubeconfig == "" {
		kubeconfig = "../.cluster/kubeconfig"
	}
	admin, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatalf("%v; make cluster starts one", err)
	}
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	ds := only[*appsv1.DaemonSet](t)
	pods, err := client.CoreV1().Pods(ds.Namespace).List(t.Context(), metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(ds.Spec.Selector),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) < 2 {
		t.Fatalf("%d agents run, the test needs 2 nodes", len(pods.Items))
	}
	own, other := pods.Items[0], pods.Items[1]

	token := func(bound *authenticationv1.BoundObjectReference) *kubernetes.Clientset {
		req, err := client.CoreV1().ServiceAccounts(ds.Namespace).CreateToken(t.Context(), own.Spec.ServiceAccountName,
			&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}},
			metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cfg := rest.AnonymousClientConfig(admin)
		cfg.BearerToken = req.Status.Token
		c, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	patch := func(c *kubernetes.Clientset, node, p string) error {
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, types.StrategicMergePatchType, []byte(p), metav1.PatchOptions{},
			"status")
		return err
	}
	condition := func(kind, status string) string {
		// The agent's own, with a heartbeat of now, so that every patch changes something.
		return `{"status":{"conditions":[{"type":"` + kind + `","status":"` + status +
			`","reason":"WeftReady","message":"Weft has programmed the node's flows",` +
			`"lastHeartbeatTime":"` + time.Now().UTC().Format(time.RFC3339) + `"}]}}`
	}
	available := func() string { return condition("NetworkUnavailable", "False") }

	agent := token(&authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: own.Name, UID: own.UID})
	if err := patch(agent, own.Spec.NodeName, available()); err != nil {
		t.Errorf("the agent cannot set its own node's condition: %v", err)
	}
	if err := patch(agent, other.Spec.NodeName, available()); !apierrors.IsForbidden(err) {
		t.Errorf("the agent changes another node's status: got %v, want Forbidden", err)
	}
	for what, p := range map[string]string{
		"another condition":       condition("WeftTest", "False"),
		"its network unavailable": condition("NetworkUnavailable", "True"),
		"its Ready condition":     condition("Ready", "Unknown"),
		"an address":              `{"status":{"addresses":[{"type":"ExternalIP","address":"192.0.2.1"}]}}`,
		"its capacity":            `{"status":{"capacity":{"example.com/weft-test":"1"}}}`,
		"a label":                 `{"metadata":{"labels":{"weft-test":"x"}}}`,
	} {
		if err := patch(agent, own.Spec.NodeName, p); !apierrors.IsForbidden(err) {
			t.Errorf("the agent changes %s of its own node: got %v, want Forbidden", what, err)
		}
	}
	if err := patch(token(nil), own.Spec.NodeName, available()); !apierrors.IsForbidden(err) {
		t.Errorf("a token without a node changes a node's status: got %v, want Forbidden", err)
	}
	if _, err := agent.CoreV1().Secrets(corev1.NamespaceAll).List(t.Context(),
		metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the agent lists Secrets: got %v, want Forbidden", err)
	}
}
