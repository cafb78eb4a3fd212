//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Weft tells the scheduler that a node's network is there.
func TestNodeCondition(t *testing.T) {
	dumpOnFailure(t)
	for _, n := range env.nodes {
		got, err := env.client.CoreV1().Nodes().Get(t.Context(), n.name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c := nodeCondition(*got, corev1.NodeNetworkUnavailable)
		if c.Status != corev1.ConditionFalse || !strings.Contains(c.Reason+c.Message, "Weft") {
			t.Errorf("node %s has NetworkUnavailable=%q, reason %q, message %q; want False, and that Weft says so", n.name,
				c.Status, c.Reason, c.Message)
		}
	}
}

// confAppears waits until the agent has ended, takes away the CNI configuration, waits until it is there again, and
// prints at once whether the agent is ready. It runs on the node, because from afar the moments could not be told
// apart.
const confAppears = `
ready() { exec 3<>/dev/tcp/127.0.0.1/9470 && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n1 <&3; } 2>/dev/null
while (ready) >/dev/null; do sleep 0.02; done
rm -f /etc/cni/net.d/*weft*
until ls /etc/cni/net.d/*weft* >/dev/null 2>&1; do sleep 0.005; done
ready`

// While an agent starts there is no CNI configuration, so the kubelet does not send it pods; when there is one, the
// agent is ready to serve.
func TestCNIConfigurationMeansReady(t *testing.T) {
	dumpOnFailure(t)
	n := env.nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type result struct {
		out string
		err error
	}
	watched := make(chan result, 1)
	go func() {
		out, err := n.run(ctx, "bash", "-c", confAppears)
		watched <- result{out, err}
	}()
	uid, err := n.deleteAgent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r := <-watched; r.err != nil || !strings.Contains(r.out, " 200 ") {
		t.Errorf("when the CNI configuration of %s appeared, /readyz answered %q, %v; want 200", n.name, r.out, r.err)
	}
	must(t, time.Minute, func(ctx context.Context) error { return n.agentReady(ctx, uid) })
}

// A bad value and an unknown key stop an agent with a message that names key, value and what is allowed.
func TestBadConfiguration(t *testing.T) {
	dumpOnFailure(t)
	for name, c := range map[string]struct {
		config string
		want   []string
	}{
		"bad-value":   {"tunnelType: carrier-pigeon\n", []string{"tunnelType", "carrier-pigeon", "geneve", "vxlan"}},
		"unknown-key": {"tunelType: vxlan\n", []string{"tunelType", "vxlan", "tunnelType"}},
	} {
		t.Run(name, func(t *testing.T) {
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{configKey: c.config}}
			if _, err := env.client.CoreV1().ConfigMaps(env.namespace).Create(t.Context(), cm,
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { deletePods(t, name) })
			if _, err := env.client.CoreV1().Pods(env.namespace).Create(t.Context(), agentWith(t, name),
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			var ended corev1.ContainerStateTerminated
			must(t, time.Minute, func(ctx context.Context) error {
				p, err := env.client.CoreV1().Pods(env.namespace).Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Terminated == nil {
					return fmt.Errorf("the agent has not stopped: %s", podProblem(*p))
				}
				ended = *p.Status.ContainerStatuses[0].State.Terminated
				return nil
			})
			log, err := env.client.CoreV1().Pods(env.namespace).GetLogs(name, &corev1.PodLogOptions{}).DoRaw(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ended.ExitCode == 0 {
				t.Errorf("the agent ended with success")
			}
			for _, word := range c.want {
				if !strings.Contains(string(log), word) {
					t.Errorf("the message does not contain %q:\n%s", word, log)
				}
			}
		})
	}
}

// agentWith is a pod that runs the installed agent's image and command with nothing but a configuration file: should
// the file be accepted against expectation, the agent cannot do anything with it.
func agentWith(t *testing.T, configMap string) *corev1.Pod {
	t.Helper()
	installed, err := env.nodes[0].agent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := installed.Spec.Containers[0]
	p := spec(configMap, env.nodes[0].name)
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.Containers[0] = corev1.Container{
		Name: "agent", Image: from.Image, ImagePullPolicy: from.ImagePullPolicy, Command: from.Command, Args: from.Args,
		Env: from.Env,
	}
	for _, m := range from.VolumeMounts {
		if m.Name == "config" {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{m}
		}
	}
	p.Spec.Volumes = []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: configMap}}}}}
	return p
}
