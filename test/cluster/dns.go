package main

import (
	"bytes"
	"context"
	_ "embed" // for the manifest
	"fmt"
	"net/netip"
	"os"
	"strings"
	"text/template"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/image"
	"github.com/weft-cni/weft/test/cluster/state"
)

const (
	// clusterDomain is what the names of Services end with.
	clusterDomain = "cluster.local"
	// dnsNamespace is where the cluster's DNS runs.
	dnsNamespace = "kube-system"
	dnsTimeout   = 2 * time.Minute
)

//go:embed dns.yaml
var dnsManifest string

// renderDNS is the manifest of the cluster's DNS.
func renderDNS(plan state.Plan) ([]byte, error) {
	text, err := template.New("dns.yaml").Parse(dnsManifest)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	values := struct {
		Domain, Image string
		Addrs         []netip.Addr
	}{clusterDomain, image.CoreDNSTag, plan.DNS()}
	err = text.Execute(&out, values)
	return out.Bytes(), err
}

// applyDNS installs CoreDNS, which starts when there is a pod network.
func applyDNS(ctx context.Context, p *progress, c state.Cluster) error {
	rendered := paths(c.Dir).join("dns.yaml")
	return p.step("kubectl apply -f "+rendered, func(func(string)) error {
		text, err := renderDNS(c.Plan)
		if err == nil {
			err = os.WriteFile(rendered, text, 0o644)
		}
		if err != nil {
			return fmt.Errorf("write the manifest of the cluster's DNS: %w", err)
		}
		_, err = kubectl(ctx, c, "apply", "-f", rendered)
		return err
	})
}

// awaitDNS returns when CoreDNS serves: then pods reach the API server through its Service.
func awaitDNS(ctx context.Context, p *progress, c state.Cluster) error {
	return p.step("CoreDNS", func(detail func(string)) error {
		err := testenv.Poll(ctx, dnsTimeout, func(ctx context.Context) error {
			ready, err := kubectl(ctx, c, "--namespace="+dnsNamespace, "get", "deployment", "coredns",
				"--output=jsonpath={.status.readyReplicas}/{.spec.replicas}")
			if err != nil {
				return err
			}
			have, want, _ := strings.Cut(ready, "/")
			if have == "" {
				have = "0"
			}
			text := fmt.Sprintf("%s of %s pods ready", have, want)
			detail(text)
			if have != want {
				return fmt.Errorf("%s: %w", text, errNotReady)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("wait for the cluster's DNS, whose pods have to reach the API server through a cluster IP: %w\n%s",
				err, diagnose(context.WithoutCancel(ctx), c, dnsNamespace))
		}
		return nil
	})
}
