//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/e2e/internal/probeimage"
)

// Where Weft is installed.
const (
	weftNamespace = "weft-system"
	weftConfigMap = "weft-config"
	configKey     = "config.yaml"
)

// env is the cluster under test. TestMain sets it before any test runs; it is not changed afterwards, apart from the
// shared pods, which guard themselves.
var env *environment

type environment struct {
	client    kubernetes.Interface
	config    *rest.Config
	record    state.Cluster
	image     probeimage.Image
	namespace string
	nodes     []node
	families  []family
	shared    sharedPods
}

// node is one node as the Kubernetes API describes it, primary family first.
type node struct {
	name     string
	addrs    []netip.Addr
	podCIDRs []netip.Prefix
}

// family is an IP family.
type family string

const (
	v4 family = "IPv4"
	v6 family = "IPv6"
)

func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return v4
	}
	return v6
}

// of picks the family's address; it is invalid when there is none.
func (f family) of(addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if familyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run exists so that its deferred clean-up happens before os.Exit.
func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(3*time.Minute))
	defer cancel()
	dir, err := os.MkdirTemp("", "weft-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if env, err = connect(ctx, dir); err != nil {
		return fail(err)
	}
	defer func() {
		// Tests may have used up any deadline, so the clean-up has its own.
		if err := env.deleteNamespace(); err != nil {
			code = fail(err)
		}
	}()
	return m.Run()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// connect finds the cluster, waits for its nodes, and prepares what every test needs.
func connect(ctx context.Context, dir string) (*environment, error) {
	root, err := testenv.Repository()
	if err != nil {
		return nil, err
	}
	stateDir := envOr("WEFT_CLUSTER_DIR", filepath.Join(root, ".cluster"))
	e := &environment{}
	if e.record, err = state.Load(stateDir); err != nil {
		return nil, err
	}
	e.config, err = clientcmd.BuildConfigFromFlags("", envOr("WEFT_KUBECONFIG", e.record.Kubeconfig()))
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	e.config.QPS, e.config.Burst = 200, 400 // churn creates 60 pods at once
	if e.client, err = kubernetes.NewForConfig(e.config); err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	if err := e.readNodes(ctx); err != nil {
		return nil, err
	}
	if e.image, err = probeimage.Build(ctx, root, dir); err != nil {
		return nil, err
	}
	cluster, err := testenv.Program(ctx, root, "./test/cluster", dir)
	if err != nil {
		return nil, err
	}
	load := exec.CommandContext(ctx, cluster, "--dir="+e.record.Dir, "--name="+e.record.Plan.Name, "load", e.image.File)
	load.Dir = root
	if out, err := load.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("load the probe's image on every node: %w: %s", err, out)
	}
	ns, err := e.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create a namespace: %w", err)
	}
	e.namespace = ns.Name
	return e, nil
}

// readNodes waits until every node is Ready and learns addresses and families.
func (e *environment) readNodes(ctx context.Context) error {
	return testenv.Poll(ctx, 2*time.Minute, func(ctx context.Context) error {
		list, err := e.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		e.nodes, e.families = nil, nil
		for _, n := range list.Items {
			if c := nodeCondition(n, corev1.NodeReady); c.Status != corev1.ConditionTrue {
				return fmt.Errorf("node %s is not Ready: %s: %s", n.Name, c.Reason, c.Message)
			}
			parsed, err := parseNode(n)
			if err != nil {
				return err
			}
			e.nodes = append(e.nodes, parsed)
		}
		if len(e.nodes) < 3 {
			return fmt.Errorf("the cluster has %d nodes, the tests need 3", len(e.nodes))
		}
		for _, cidr := range e.nodes[0].podCIDRs {
			e.families = append(e.families, familyOf(cidr.Addr()))
		}
		return nil
	})
}

func parseNode(n corev1.Node) (node, error) {
	parsed := node{name: n.Name}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			return node{}, fmt.Errorf("address of node %s: %w", n.Name, err)
		}
		parsed.addrs = append(parsed.addrs, addr)
	}
	for _, c := range n.Spec.PodCIDRs {
		cidr, err := netip.ParsePrefix(c)
		if err != nil {
			return node{}, fmt.Errorf("pod CIDR of node %s: %w", n.Name, err)
		}
		parsed.podCIDRs = append(parsed.podCIDRs, cidr)
	}
	if len(parsed.addrs) == 0 || len(parsed.podCIDRs) == 0 {
		return node{}, fmt.Errorf("node %s has addresses %v and pod CIDRs %v", n.Name, parsed.addrs, parsed.podCIDRs)
	}
	return parsed, nil
}

func nodeCondition(n corev1.Node, kind corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{Type: kind, Reason: "there is no such condition"}
}

// deleteNamespace waits until the namespace and its pods are gone, so that the next run starts from nothing.
func (e *environment) deleteNamespace() error {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience(2*time.Minute))
	defer cancel()
	namespaces := e.client.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, e.namespace, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete namespace %s: %w", e.namespace, err)
	}
	return testenv.Poll(ctx, time.Minute, func(ctx context.Context) error {
		ns, err := namespaces.Get(ctx, e.namespace, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("namespace %s is still there: %v", e.namespace, ns.Status.Conditions)
		}
		return ignoreNotFound(err)
	})
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
