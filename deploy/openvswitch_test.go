package deploy

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-cni/weft/build"
	"github.com/weft-cni/weft/pkg/config"
)

// The switch runs with no more than it needs, where the agent looks for it, and apart from what removes Weft.
func TestOpenVSwitch(t *testing.T) {
	objects := decode(t, "openvswitch.yaml")
	ds := one[*appsv1.DaemonSet](t, objects)
	namespace := one[*corev1.Namespace](t, objects).Name
	if own := only[*corev1.Namespace](t).Name; ds.Namespace != namespace || namespace == own {
		t.Errorf("the DaemonSet is in %s, the namespace is %s, Weft's is %s", ds.Namespace, namespace, own)
	}
	if len(objects) != 2 {
		t.Errorf("%d objects, want a Namespace and a DaemonSet, which needs no permission", len(objects))
	}
	spec := ds.Spec.Template.Spec
	if token := spec.AutomountServiceAccountToken; !spec.HostNetwork || !spec.HostPID || token == nil || *token {
		t.Errorf("hostNetwork %t, hostPID %t, a token %v", spec.HostNetwork, spec.HostPID, token)
	}
	if d := cmp.Diff(podSpec(t).Tolerations, spec.Tolerations); d != "" {
		t.Errorf("the switch is not on the nodes of the agent (-agent +switch):\n%s", d)
	}
	if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("the seccomp profile is %v", p)
	}
	c := spec.Containers[0]
	want := &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"},
			Add: []corev1.Capability{"NET_ADMIN", "NET_BROADCAST", "NET_RAW"}},
	}
	if d := cmp.Diff(want, c.SecurityContext); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if c.Image != build.Image || c.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("it runs %s (%s); make image builds %s", c.Image, c.ImagePullPolicy, build.Image)
	}
	var paths []string
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			paths = append(paths, v.HostPath.Path)
		}
	}
	if d := cmp.Diff([]string{config.Default().OVSRunDir, "/var/lib/openvswitch", "/dev/net"}, paths); d != "" {
		t.Errorf("directories of the node (-want +got):\n%s", d)
	}
	for _, m := range c.VolumeMounts {
		if m.Name != "tmp" && !slices.Contains(paths, m.MountPath) {
			t.Errorf("%s is mounted at %s, where Open vSwitch does not look", m.Name, m.MountPath)
		}
	}
}
