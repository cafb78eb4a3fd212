// Package admission holds the manifest's ValidatingAdmissionPolicy to what it promises, with the API server's own code.
package admission

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	apiservercel "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/kubernetes/scheme"
)

func policy(t *testing.T) *admissionv1.ValidatingAdmissionPolicy {
	t.Helper()
	data, err := os.ReadFile("../../../deploy/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(doc, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := obj.(*admissionv1.ValidatingAdmissionPolicy); ok {
			return p
		}
	}
	t.Fatal("the manifest has no ValidatingAdmissionPolicy")
	return nil
}

func node() *corev1.Node {
	now := metav1.Unix(1000, 0)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "7", CreationTimestamp: now,
			Labels:        map[string]string{"zone": "a"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
		Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status: corev1.NodeStatus{
			Capacity: corev1.ResourceList{"cpu": resource.MustParse("2")}, Allocatable: corev1.ResourceList{
				"cpu": resource.MustParse("2")},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.1"}},
			Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionFalse, LastHeartbeatTime: now}, {Type: corev1.NodeMemoryPressure,
					Status: corev1.ConditionFalse},
			},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
			NodeInfo:        corev1.NodeSystemInfo{KubeletVersion: "v1.34.4"},
			Images:          []corev1.ContainerImage{{Names: []string{"a", "b"}, SizeBytes: 7}},
		},
	}
}

// TestAgentChangesOneConditionOnly: an agent sets NetworkUnavailable to False on its own node, and nothing else.
func TestAgentChangesOneConditionOnly(t *testing.T) {
	const key = "4Xl7sGLZmzWm1p5p7LrUoPZvZPJ6sVh3q0qkqHnL8Wg=@51871"
	p := policy(t)
	env, err := cel.NewCompositionEnv(cel.VariablesTypeName,
		environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion(), true))
	if err != nil {
		t.Fatal(err)
	}
	compiler := cel.NewCompositedCompilerFromTemplate(env)
	options := cel.OptionalVariableDeclarations{HasAuthorizer: true, StrictCost: true}
	var variables []cel.NamedExpressionAccessor
	for _, v := range p.Spec.Variables {
		variables = append(variables, &validating.Variable{Name: v.Name, Expression: v.Expression})
	}
	compiler.CompileAndStoreVariables(variables, options, environment.NewExpressions)
	var validations []cel.ExpressionAccessor
	for _, v := range p.Spec.Validations {
		c := &validating.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason}
		if result := compiler.CompileCELExpression(c, options, environment.NewExpressions); result.Error != nil {
			t.Fatalf("%s: %v", v.Message, result.Error)
		}
		validations = append(validations, c)
	}
	validator := validating.NewValidator(compiler.CompileCondition(validations, options, environment.NewExpressions), nil,
		compiler.CompileCondition(nil, options, environment.NewExpressions), compiler.CompileCondition(nil, options,
			environment.NewExpressions), p.Spec.FailurePolicy)

	gvr, gvk := corev1.SchemeGroupVersion.WithResource("nodes"), corev1.SchemeGroupVersion.WithKind("Node")
	judge := func(of string, before, now *corev1.Node) []string {
		extra := map[string][]string{"authentication.kubernetes.io/credential-id": {"x"}} // as every token has it
		if of != "" {
			extra["authentication.kubernetes.io/node-name"] = []string{of}
		}
		agent := &user.DefaultInfo{Name: "system:serviceaccount:weft-system:weft-agent", Extra: extra}
		attributes := admission.NewAttributesRecord(now, before, gvk, "", "n1", gvr, "status", admission.Update,
			&metav1.PatchOptions{}, false, agent)
		versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: gvk,
			VersionedObject: runtime.Object(now), VersionedOldObject: before}
		result := validator.Validate(t.Context(), schema.GroupVersionResource(gvr), versioned, nil, nil,
			apiservercel.RuntimeCELCostBudget, nil)
		var denied []string
		for _, d := range result.Decisions {
			if d.Action != validating.ActionAdmit || d.Evaluation == validating.EvalError {
				denied = append(denied, d.Message)
			}
		}
		return denied
	}
	available := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: "WeftReady", LastHeartbeatTime: metav1.Unix(2000, 0)}
	const onlyConditions, onlyOne, noMetadata = "nothing but conditions", "no condition but NetworkUnavailable",
		"may not change the metadata"
	for name, tc := range map[string]struct {
		of     string
		before func(*corev1.Node)
		change func(*corev1.Node)
		denied string // part of the message; empty when it is admitted
	}{
		"sets the condition": {"n1", nil, func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, available)
		}, ""},
		"as the first of all": {"n1", nil, func(n *corev1.Node) {
			n.Status.Conditions = append([]corev1.NodeCondition{available}, n.Status.Conditions...)
		}, ""},
		"where there are none": {"n1", func(n *corev1.Node) { n.Status.Conditions = nil }, func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{available}
		}, ""},
		"changes it back": {"n1", func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable,
				Status: corev1.ConditionTrue})
		}, func(n *corev1.Node) { n.Status.Conditions[2] = available }, ""},
		"changes nothing": {"n1", nil, func(*corev1.Node) {}, ""},
		"and the API server's own": {"n1", nil, func(n *corev1.Node) {
			n.ManagedFields, n.ResourceVersion = nil, "8"
			n.Status.Conditions = append(n.Status.Conditions, available)
		}, ""},
		"on another node": {"n2", nil, func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, available)
		}, "its own node only"},
		"without a node": {"", nil, func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, available)
		}, "its own node only"},
		"makes the network unavailable": {"n1", nil, func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable,
				Status: corev1.ConditionTrue})
		}, onlyOne},
		"sets another condition": {"n1", nil, func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: "WeftTest",
				Status: corev1.ConditionFalse})
		}, onlyOne},
		"makes the node Ready": {"n1", nil, func(n *corev1.Node) {
			n.Status.Conditions[0].Status = corev1.ConditionTrue
		}, onlyOne},
		"removes a condition": {"n1", nil, func(n *corev1.Node) {
			n.Status.Conditions = n.Status.Conditions[1:]
		}, onlyOne},
		"removes all conditions": {"n1", nil, func(n *corev1.Node) { n.Status.Conditions = nil }, onlyOne},
		"changes an address": {"n1", nil, func(n *corev1.Node) {
			n.Status.Addresses[0].Address = "172.30.0.9"
		}, onlyConditions},
		"removes the addresses": {"n1", nil, func(n *corev1.Node) { n.Status.Addresses = nil }, onlyConditions},
		"changes the capacity": {"n1", nil, func(n *corev1.Node) {
			n.Status.Capacity["cpu"] = resource.MustParse("64")
		}, onlyConditions},
		"adds a resource": {"n1", nil, func(n *corev1.Node) {
			n.Status.Allocatable["example.com/gpu"] = resource.MustParse("1")
		}, onlyConditions},
		"changes the kubelet's port": {"n1", nil, func(n *corev1.Node) {
			n.Status.DaemonEndpoints.KubeletEndpoint.Port = 1
		}, onlyConditions},
		"changes an image": {"n1", nil, func(n *corev1.Node) { n.Status.Images[0].Names[1] = "c" }, onlyConditions},
		"adds attached volumes": {"n1", nil, func(n *corev1.Node) {
			n.Status.VolumesAttached = []corev1.AttachedVolume{{Name: "v"}}
		}, onlyConditions},
		"publishes its underlay": {"n1", func(n *corev1.Node) { n.Annotations = map[string]string{"a": "b"} }, func(n *corev1.Node) {
			n.Annotations["weft.dev/underlay"] = "172.30.0.1/24@02:00:00:00:00:01"
			n.Annotations["weft.dev/receives"] = "direct,wireguard"
			n.Annotations["weft.dev/wireguard"] = key
		}, ""},
		"takes its key back": {"n1", func(n *corev1.Node) {
			n.Annotations = map[string]string{"weft.dev/wireguard": key}
		}, func(n *corev1.Node) { n.Annotations = nil }, ""},
		"replaces another node's key": {"n2", func(n *corev1.Node) {
			n.Annotations = map[string]string{"weft.dev/wireguard": key}
		}, func(n *corev1.Node) { n.Annotations["weft.dev/wireguard"] = "A" + key[1:] }, "its own node only"},
		"publishes the first annotation": {"n1", nil, func(n *corev1.Node) {
			n.Annotations = map[string]string{"weft.dev/underlay": "172.30.0.1/24@02:00:00:00:00:01"}
		}, ""},
		"takes back what it receives": {"n1", func(n *corev1.Node) {
			n.Annotations = map[string]string{"weft.dev/receives": "direct"}
		}, func(n *corev1.Node) { n.Annotations = nil }, ""},
		"publishes another node's underlay": {"n2", nil, func(n *corev1.Node) {
			n.Annotations = map[string]string{"weft.dev/underlay": "172.30.0.1/24@02:00:00:00:00:01"}
		}, "its own node only"},
		"changes another annotation beside": {"n1", func(n *corev1.Node) {
			n.Annotations = map[string]string{"a": "b"}
		}, func(n *corev1.Node) {
			n.Annotations = map[string]string{"a": "c", "weft.dev/receives": "direct"}
		}, noMetadata},
		"removes another annotation": {"n1", func(n *corev1.Node) {
			n.Annotations = map[string]string{"a": "b"}
		}, func(n *corev1.Node) { n.Annotations = nil }, noMetadata},
		"adds a label": {"n1", nil, func(n *corev1.Node) {
			n.Labels["node-role.kubernetes.io/control-plane"] = ""
		}, noMetadata},
		"removes the labels": {"n1", nil, func(n *corev1.Node) { n.Labels = nil }, noMetadata},
		"adds an annotation": {"n1", nil, func(n *corev1.Node) { n.Annotations = map[string]string{"a": "b"} }, noMetadata},
		"adds a finalizer":   {"n1", nil, func(n *corev1.Node) { n.Finalizers = []string{"example.com/x"} }, noMetadata},
	} {
		before := node()
		if tc.before != nil {
			tc.before(before)
		}
		now := before.DeepCopy()
		tc.change(now)
		denied := judge(tc.of, before, now)
		if tc.denied == "" && len(denied) > 0 || tc.denied != "" &&
			(len(denied) != 1 || !strings.Contains(denied[0], tc.denied)) {
			t.Errorf("an agent that %s: denied %q, want %q", name, fmt.Sprint(denied), tc.denied)
		}
	}
	many := node()
	for i := range 2000 {
		many.Status.Images = append(many.Status.Images, corev1.ContainerImage{
			Names: []string{fmt.Sprint("registry.example/team/image-", i)}, SizeBytes: int64(i)})
	}
	now := many.DeepCopy()
	now.Status.Conditions = append(now.Status.Conditions, available)
	if denied := judge("n1", many, now); len(denied) > 0 {
		t.Errorf("with 2,000 images: %v", denied)
	}
}
