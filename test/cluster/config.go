package main

import (
	"fmt"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/weft-cni/weft/test/cluster/image"
	"github.com/weft-cni/weft/test/cluster/pki"
	"github.com/weft-cni/weft/test/cluster/state"
)

func writeKubeconfig(path string, plan state.Plan, ca string, user pki.Pair) error {
	config := map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": plan.Name,
		"clusters": []any{map[string]any{"name": plan.Name, "cluster": map[string]any{
			"server": plan.APIServer(), "certificate-authority": ca}}},
		"users": []any{map[string]any{"name": plan.Name, "user": map[string]any{
			"client-certificate": user.Cert, "client-key": user.Key}}},
		"contexts": []any{map[string]any{"name": plan.Name, "context": map[string]any{"cluster": plan.Name,
			"user": plan.Name}}},
	}
	return writeYAML(path, config)
}

// containerdConfig is the configuration of Debian 12's containerd 1.6. Everything is where a host installation has it,
// since a node has those places to itself.
func containerdConfig() string {
	return fmt.Sprintf(`version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  # Without the right to lower OOM scores below the parent's, setting them must not fail.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  # Where a test may say that an image comes from a registry of its own.
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
`, image.PauseTag)
}

func kubeletConfig(dir paths, plan state.Plan, n state.Node) map[string]any {
	serving := dir.cert(n.Name)
	listen := "0.0.0.0"
	if plan.Family != state.IPv4 {
		listen = "::" // both families
	}
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"address":    listen,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": dir.cert("ca").Cert},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              serving.Cert,
		"tlsPrivateKeyFile":        serving.Key,
		"clusterDomain":            clusterDomain,
		"clusterDNS":               texts(plan.DNS()),
		"resolvConf":               dir.node(n.Name, "resolv.conf"),
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"volumePluginDir":          "/var/lib/kubelet/volume-plugins",
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               n.Sandbox.Cgroup().Path(),
		"enforceNodeAllocatable":   []string{},
		"failSwapOn":               false,
		"serializeImagePulls":      false,
		// The nodes share one machine's disk and memory: how full those are says nothing about a node.
		"imageGCHighThresholdPercent": 100,
		"evictionHard": map[string]any{"memory.available": "0%", "nodefs.available": "0%",
			"nodefs.inodesFree": "0%", "imagefs.available": "0%"},
	}
}

// sysctls are kernel settings that kubelet insists on and sets. They are the whole machine's, so a node shows kubelet
// files that have the values already, and the machine keeps its own.
var sysctls = map[string]string{
	"kernel/keys/root_maxbytes": "25000000",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
}

func writeYAML(path string, value any) error {
	data, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
