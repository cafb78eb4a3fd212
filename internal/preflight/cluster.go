package preflight

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kubectl runs kubectl with an input, and returns what it writes.
type Kubectl interface {
	RunWith(ctx context.Context, input []byte, args ...string) ([]byte, error)
}

// others are DaemonSets of other plugins, by their names.
var others = regexp.MustCompile(`^(kube-flannel.*|calico-node|cilium|antrea-agent|kube-router|ovnkube-node.*|weave-net|aws-node|kindnet|canal)$`)

type items[T any] struct {
	Items []T `json:"items"`
}

type named struct {
	Metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

type node struct {
	named
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

type slice struct {
	named
	Ports []struct {
		Port int `json:"port"`
	} `json:"ports"`
	Endpoints []struct {
		Addresses []string `json:"addresses"`
	} `json:"endpoints"`
}

// get reads objects.
func get[T any](ctx context.Context, k Kubectl, args ...string) (v T, err error) {
	out, err := k.RunWith(ctx, nil, append(args, "--output=json")...)
	if err == nil {
		if err = json.Unmarshal(out, &v); err != nil {
			err = fmt.Errorf("read what kubectl %s says: %w", strings.Join(args, " "), err)
		}
	}
	return v, err
}

// Cluster looks at what the API server knows, and returns the nodes' names. An error is that it could not be asked.
func Cluster(ctx context.Context, k Kubectl) (list []Finding, names []string, err error) {
	version, err := get[struct {
		Server struct {
			Version string `json:"gitVersion"`
		} `json:"serverVersion"`
	}](ctx, k, "version")
	if err != nil {
		return nil, nil, err
	}
	nodes, err := get[items[node]](ctx, k, "get", "nodes")
	if err != nil {
		return nil, nil, err
	}
	sets, err := get[items[named]](ctx, k, "get", "daemonsets", "--all-namespaces")
	if err != nil {
		return nil, nil, err
	}
	slicesOf, err := get[items[slice]](ctx, k, "get", "endpointslices", "--namespace=default",
		"--selector=kubernetes.io/service-name=kubernetes")
	if err != nil {
		return nil, nil, err
	}
	proxied, rest := proxies(sets.Items)
	list = append(list, kubernetes(version.Server.Version), proxied, rest, apiServer(slicesOf.Items))
	for _, n := range nodes.Items {
		list = append(list, podCIDRs(n))
		names = append(names, n.Metadata.Name)
	}
	slices.Sort(names)
	return list, names, nil
}

var kubernetesVersion = regexp.MustCompile(`^v(\d+)\.(\d+)\.`)

func kubernetes(version string) Finding {
	f := Finding{Check: "Kubernetes", Saw: version}
	m := kubernetesVersion.FindStringSubmatch(version)
	if m == nil {
		f.Do = "the version of the API server is not known; Weft needs 1.30 or newer"
		return f
	}
	major, _ := strconv.Atoi(m[1]) // digits
	minor, _ := strconv.Atoi(m[2])
	if slices.Compare([]int{major, minor}, []int{1, 30}) < 0 {
		f.Do = "upgrade Kubernetes to 1.30 or newer"
	}
	return f
}

// proxies looks for kube-proxy, which Weft replaces, and for other plugins.
func proxies(sets []named) (proxy, plugins Finding) {
	proxy = Finding{Check: "kube-proxy", Saw: "DaemonSet kube-proxy not found"}
	plugins = Finding{Check: "other CNI plugins", Saw: "no known DaemonSet of one"}
	var found []string
	for _, s := range sets {
		name := s.Metadata.Namespace + "/" + s.Metadata.Name
		switch {
		case s.Metadata.Name == "kube-proxy":
			proxy.Saw = "DaemonSet " + name
			proxy.Do = "set apiServer, and once Weft is ready, delete the DaemonSet and run kube-proxy --cleanup on the nodes"
		case others.MatchString(s.Metadata.Name):
			found = append(found, name)
		}
	}
	if len(found) > 0 {
		plugins.Saw = "DaemonSet " + strings.Join(found, ", ")
		plugins.Do = "remove the other plugin before Weft is installed"
	}
	return proxy, plugins
}

// apiServer names the address to set: nothing serves the Service before the first agent does.
func apiServer(list []slice) Finding {
	f := Finding{Check: "API server"}
	for _, s := range list {
		for _, e := range s.Endpoints {
			for _, a := range e.Addresses {
				if len(s.Ports) > 0 {
					f.Saw = cmp.Or(f.Saw, fmt.Sprintf("it serves at https://%s; with a load balancer before it, use that for "+
						"apiServer", joinHostPort(a, s.Ports[0].Port)))
				}
			}
		}
	}
	if f.Saw == "" {
		f.Saw = "the EndpointSlice of the Service kubernetes has no address"
		f.Do = "set apiServer to an address that all nodes reach"
	}
	return f
}

func joinHostPort(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

func podCIDRs(n node) Finding {
	f := Finding{Node: n.Metadata.Name, Check: "pod CIDRs", Saw: strings.Join(n.Spec.PodCIDRs, ", ")}
	internal := false
	for _, a := range n.Status.Addresses {
		internal = internal || a.Type == "InternalIP"
	}
	switch {
	case len(n.Spec.PodCIDRs) == 0:
		f.Saw = "the Node has none"
		f.Do = "give the controller manager --allocate-node-cidrs and --cluster-cidr (kubeadm: networking.podSubnet)"
	case !internal:
		f.Saw, f.Do = "the Node has no InternalIP", "set the kubelet's --node-ip, or repair the cloud provider"
	}
	return f
}
