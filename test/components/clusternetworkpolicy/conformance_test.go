// Package clusternetworkpolicy is the conformance suite of network-policy-api: all its tests of ClusterNetworkPolicy,
// of the channels standard and experimental. `go test -c` makes a program of it that runs them against the cluster of
// $KUBECONFIG, in which the CustomResourceDefinition and two nodes have to be.
package clusternetworkpolicy

import (
	"flag"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	upstream "sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
)

// slow multiplies upstream's time limits, for an emulated machine. How long a denied connection is waited for stays.
var slow = flag.Int("slow", 1, "multiply time limits by `N`")

func TestConformance(t *testing.T) {
	cfg, err := config.GetConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := v1alpha2.Install(c.Scheme()); err != nil {
		t.Fatal(err)
	}
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	limits := upstream.DefaultTimeoutConfig()
	for _, limit := range []*time.Duration{&limits.CreateTimeout, &limits.DeleteTimeout, &limits.GetTimeout,
		&limits.NamespacesMustBeReady, &limits.PokeTimeout} {
		*limit *= time.Duration(*slow)
	}
	s := suite.New(suite.Options{
		Client: c, ClientSet: clientset, KubeConfig: *cfg, TimeoutConfig: limits,
		EnableAllSupportedFeatures: true, CleanupBaseResources: true,
	})
	s.Setup(t)
	s.Run(t, tests.ConformanceTests)
}
