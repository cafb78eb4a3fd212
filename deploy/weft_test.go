// Package deploy has no code: its tests hold the manifests to what the rest of the repository says.
package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-cni/weft/build"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/report/api"
)

// decode reads a manifest as strictly as the API server does with kubectl's --validate=strict.
func decode(t *testing.T, file string) []runtime.Object {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	for i, doc := range bytes.Split(data, []byte("\n---\n")) {
		obj, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("document %d: %v", i, err)
		}
		objects = append(objects, obj)
	}
	return objects
}

// only is weft.yaml's one object of its type.
func only[T runtime.Object](t *testing.T) T {
	t.Helper()
	return one[T](t, decode(t, "weft.yaml"))
}

func one[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	var found []T
	for _, obj := range objects {
		if o, ok := obj.(T); ok {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of type %v, want 1", len(found), reflect.TypeFor[T]())
	}
	return found[0]
}

func podSpec(t *testing.T) corev1.PodSpec {
	t.Helper()
	return only[*appsv1.DaemonSet](t).Spec.Template.Spec
}

func containers(spec corev1.PodSpec) []corev1.Container {
	return append(slices.Clone(spec.InitContainers), spec.Containers...)
}

func agent(t *testing.T) corev1.Container {
	t.Helper()
	spec := podSpec(t)
	if len(spec.Containers) != 1 {
		t.Fatalf("%d containers, want 1", len(spec.Containers))
	}
	return spec.Containers[0]
}

// What is granted is written down twice, so that no change grants more in passing.
func TestPermissions(t *testing.T) {
	want := `"" nodes: get, list, watch
"" nodes/status: patch
"" pods, namespaces: get, list, watch
"networking.k8s.io" networkpolicies: get, list, watch
"policy.networking.k8s.io" clusternetworkpolicies: get, list, watch
"" services: get, list, watch
"discovery.k8s.io" endpointslices: get, list, watch
"networking.k8s.io" servicecidrs: get, list, watch
"" events: create, patch
`
	var got strings.Builder
	for _, r := range only[*rbacv1.ClusterRole](t).Rules {
		if len(r.NonResourceURLs) > 0 || slices.Contains(slices.Concat(r.APIGroups, r.Resources, r.Verbs), "*") {
			t.Errorf("a rule grants more than it names: %v", r)
		}
		fmt.Fprintf(&got, "%q %s: %s\n", strings.Join(r.APIGroups, ", "), strings.Join(r.Resources, ", "),
			strings.Join(r.Verbs, ", "))
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestNamesFit(t *testing.T) {
	namespace := only[*corev1.Namespace](t).Name
	account := only[*corev1.ServiceAccount](t)
	binding := only[*rbacv1.ClusterRoleBinding](t)
	ds := only[*appsv1.DaemonSet](t)
	cm := only[*corev1.ConfigMap](t)
	policy := only[*admissionv1.ValidatingAdmissionPolicy](t)

	for _, got := range []string{account.Namespace, ds.Namespace, cm.Namespace} {
		if got != namespace {
			t.Errorf("an object is in the namespace %q, want %q", got, namespace)
		}
	}
	wantSubjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account.Name, Namespace: namespace}}
	if d := cmp.Diff(wantSubjects, binding.Subjects); d != "" {
		t.Errorf("the binding's subjects (-want +got):\n%s", d)
	}
	if role := only[*rbacv1.ClusterRole](t).Name; binding.RoleRef.Name != role {
		t.Errorf("the binding refers to %q, want %q", binding.RoleRef.Name, role)
	}
	if got := ds.Spec.Template.Spec.ServiceAccountName; got != account.Name {
		t.Errorf("the DaemonSet runs as %q, want %q", got, account.Name)
	}
	if got := only[*admissionv1.ValidatingAdmissionPolicyBinding](t).Spec.PolicyName; got != policy.Name {
		t.Errorf("the policy binding is for %q, want %q", got, policy.Name)
	}
	user := fmt.Sprintf("%q", "system:serviceaccount:"+namespace+":"+account.Name)
	if c := policy.Spec.MatchConditions; len(c) != 1 || c[0].Expression != "request.userInfo.username == "+user {
		t.Errorf("the policy is for %v, want %s", c, user)
	}
	for k, v := range ds.Spec.Selector.MatchLabels {
		if ds.Spec.Template.Labels[k] != v {
			t.Errorf("the DaemonSet selects %s=%s, its pods do not have it", k, v)
		}
	}
}

func TestPrivileges(t *testing.T) {
	spec := podSpec(t)
	if spec.HostPID || spec.HostIPC {
		t.Error("the pod shares the node's processes or IPC")
	}
	if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("the seccomp profile is %v", p)
	}
	allowed := map[string][]corev1.Capability{"install-cni": {"DAC_OVERRIDE"},
		"weft-agent": {"NET_ADMIN", "NET_RAW", "SYS_ADMIN"}}
	for _, c := range containers(spec) {
		want := &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: allowed[c.Name]},
		}
		if d := cmp.Diff(want, c.SecurityContext); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.Name, d)
		}
	}
}

func TestImages(t *testing.T) {
	for _, c := range containers(podSpec(t)) {
		if c.Image != build.Image || c.ImagePullPolicy != corev1.PullIfNotPresent {
			t.Errorf("%s runs %s (%s); make image builds %s", c.Name, c.Image, c.ImagePullPolicy, build.Image)
		}
		if d := cmp.Diff([]string{build.BinDir + "/weft-agent"}, c.Command); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.Name, d)
		}
	}
}

// The commented keys are the defaults, all of them, and become valid without the comment sign.
func TestConfigMapShowsTheDefaults(t *testing.T) {
	cm := only[*corev1.ConfigMap](t)
	if len(cm.Data) != 1 {
		t.Fatalf("%d keys, want only config.yaml", len(cm.Data))
	}
	text := cm.Data["config.yaml"]
	asItIs, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if changes := config.Diff(config.Default(), asItIs); len(changes) > 0 {
		t.Errorf("the ConfigMap sets %v", changes)
	}

	uncommented := strings.ReplaceAll("\n"+text, "\n# ", "\n")
	shown, err := config.Parse([]byte(uncommented))
	if err != nil {
		t.Fatal(err)
	}
	if changes := config.Diff(config.Default(), shown); len(changes) > 0 {
		t.Errorf("the comments show other values than the defaults: %v", changes)
	}
	for f := range reflect.TypeFor[config.Config]().Fields() {
		if key := f.Tag.Get("json"); !strings.Contains(uncommented, "\n"+key+": ") {
			t.Errorf("the ConfigMap does not show the key %s", key)
		}
	}
}

// What the arguments and the configuration's defaults name is mounted there.
func TestPathsFit(t *testing.T) {
	c, spec := agent(t), podSpec(t)
	mounts := map[string]string{}
	for _, m := range c.VolumeMounts {
		mounts[m.MountPath] = m.Name
	}
	for want, volume := range map[string]string{
		path.Dir(argument(t, c.Args, "--config")):            "config",
		argument(t, c.Args, "--host-run"):                    "host-run",
		argument(t, c.Args, "--cni-conf-dir"):                "cni-conf",
		path.Join(argument(t, c.Args, "--proc-sys"), "/net"): "proc-sys-net",
	} {
		if mounts[want] != volume {
			t.Errorf("%s is the volume %q, want %q", want, mounts[want], volume)
		}
	}
	for _, v := range spec.Volumes {
		// Not the directory of Open vSwitch itself, whose mount would not follow a new one.
		if dir, run := config.Default().OVSRunDir, v.HostPath; v.Name == "host-run" &&
			(run == nil || path.Dir(dir) != run.Path) {
			t.Errorf("%s is not in the directory that the volume %s mounts", dir, v.Name)
		}
	}
	for _, m := range c.VolumeMounts {
		if p := m.MountPropagation; m.Name == "host-run" && (p == nil || *p != corev1.MountPropagationHostToContainer ||
			!m.ReadOnly) {
			t.Errorf("the mount of %s is %v, want what is mounted later on the node, to read only", m.MountPath, m)
		}
	}
	if file := path.Base(argument(t, c.Args, "--config")); only[*corev1.ConfigMap](t).Data[file] == "" {
		t.Errorf("the ConfigMap has no key %s", file)
	}
	install := spec.InitContainers[0]
	if got := argument(t, install.Args, "--from"); got != build.CNIDir {
		t.Errorf("the plugins are installed from %s, the image has them in %s", got, build.CNIDir)
	}
	if got := argument(t, install.Args, "--to"); got != install.VolumeMounts[0].MountPath {
		t.Errorf("the plugins are installed to %s, mounted is %s", got, install.VolumeMounts[0].MountPath)
	}

	used := map[string]bool{}
	for _, c := range containers(spec) {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
	}
	for _, v := range spec.Volumes {
		if !used[v.Name] {
			t.Errorf("no container mounts the volume %s", v.Name)
		}
		if v.HostPath != nil && (v.HostPath.Type == nil || *v.HostPath.Type == corev1.HostPathUnset) {
			t.Errorf("the volume %s takes whatever is at %s", v.Name, v.HostPath.Path)
		}
		delete(used, v.Name)
	}
	if len(used) > 0 {
		t.Errorf("mounted, but no volume: %v", used)
	}
}

func argument(t *testing.T, args []string, flag string) string {
	t.Helper()
	i := slices.Index(args, flag)
	if i < 0 || i+1 == len(args) {
		t.Fatalf("%s is not among %v", flag, args)
	}
	return args[i+1]
}

// A kubelet that probes what the agent does not serve, or what another process of the node can take, restarts the agent
// again and again. TestProbesWithoutPort (test/datapath) runs the probes.
func TestProbesFit(t *testing.T) {
	c := agent(t)
	for what, probe := range map[string]*corev1.Probe{"live": c.LivenessProbe, "ready": c.ReadinessProbe} {
		if probe.Exec == nil {
			t.Fatalf("the probe of %s is %+v, want a command: a port can be taken", what, probe.ProbeHandler)
		}
		if d := cmp.Diff([]string{build.BinDir + "/weftctl", "health", what}, probe.Exec.Command); d != "" {
			t.Errorf("the probe of %s (-want +got):\n%s", what, d)
		}
		// Each probe starts a process, which takes long on a busy machine.
		if probe.TimeoutSeconds < 10 || probe.PeriodSeconds < probe.TimeoutSeconds {
			t.Errorf("the probe of %s ends after %d s and is repeated every %d s", what, probe.TimeoutSeconds,
				probe.PeriodSeconds)
		}
	}
	if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.MountPath == path.Dir(api.DefaultSocket) && !m.ReadOnly
	}) {
		t.Errorf("the directory of %s, which the probes ask, is not mounted", api.DefaultSocket)
	}
	if slices.Contains(c.Args, "--operator-socket") {
		t.Error("the agent serves another socket than weftctl asks")
	}
}

// The network has to come up on a node before anything else can run there, and stay while the node is drained.
func TestRunsOnEveryNode(t *testing.T) {
	spec := podSpec(t)
	if d := cmp.Diff([]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, spec.Tolerations); d != "" {
		t.Errorf("tolerations (-want +got):\n%s", d)
	}
	if !spec.HostNetwork || spec.DNSPolicy != corev1.DNSDefault || spec.PriorityClassName != "system-node-critical" {
		t.Errorf("hostNetwork %v, dnsPolicy %s, priorityClassName %s", spec.HostNetwork, spec.DNSPolicy,
			spec.PriorityClassName)
	}
	env := agent(t).Env
	if len(env) != 2 || env[0].Name != "OVS_RUNDIR" || env[1].Name != "NODE_NAME" ||
		env[1].ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
		t.Fatalf("environment %v, want OVS_RUNDIR, and NODE_NAME from spec.nodeName", env)
	}
	if want := path.Join(argument(t, agent(t).Args, "--host-run"),
		path.Base(config.Default().OVSRunDir)); env[0].Value != want {
		t.Errorf("OVS_RUNDIR is %s, want %s", env[0].Value, want)
	}
}
