package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-cni/weft/pkg/model"
)

// The annotations that an agent writes at its own Node object, and that those of the other nodes read.
const (
	// UnderlayAnnotation has the links that carry the node's InternalIPs, as model.Uplink.String, separated by commas.
	UnderlayAnnotation = "weft.dev/underlay"
	// ReceivesAnnotation has the forms other than tunnels in which the node accepts packets of other nodes' pods,
	// separated by commas.
	ReceivesAnnotation = "weft.dev/receives"
	// WireGuardAnnotation is the node's WireGuard device, as model.WireGuard.String.
	WireGuardAnnotation = "weft.dev/wireguard"
)

// The values of ReceivesAnnotation.
const (
	receivesDirect    = "direct"
	receivesIPIP      = "ipip"
	receivesWireGuard = "wireguard"
)

// published are the annotations that Publish writes.
var published = []string{UnderlayAnnotation, ReceivesAnnotation, WireGuardAnnotation}

// readPublished reads them into the node. What cannot be read is left out.
func readPublished(n *model.Node, annotations map[string]string) (bad []error) {
	receives := strings.Split(annotations[ReceivesAnnotation], ",")
	n.ReceivesDirect = slices.Contains(receives, receivesDirect)
	n.ReceivesIPIP = slices.Contains(receives, receivesIPIP)
	n.ReceivesWireGuard = slices.Contains(receives, receivesWireGuard)
	if text := annotations[UnderlayAnnotation]; text != "" {
		for _, word := range strings.Split(text, ",") {
			uplink, err := model.ParseUplink(word)
			if err != nil {
				bad = append(bad, fmt.Errorf("annotation %s: %w", UnderlayAnnotation, err))
				continue
			}
			n.Underlay = append(n.Underlay, uplink)
		}
	}
	if text := annotations[WireGuardAnnotation]; text != "" {
		var err error
		if n.WireGuard, err = model.ParseWireGuard(text); err != nil {
			bad = append(bad, fmt.Errorf("annotation %s: %w", WireGuardAnnotation, err))
		}
	}
	return bad
}

// trimAnnotations keeps those that Node reads.
func trimAnnotations(all map[string]string) map[string]string {
	var kept map[string]string
	for _, key := range published {
		if value, ok := all[key]; ok {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}

// Publish writes what other nodes must know of the node into the annotations of its Node object. It patches the status,
// which may change annotations as well, because the agent has no permission for more.
func Publish(ctx context.Context, client kubernetes.Interface, n model.Node) error {
	underlay := make([]string, len(n.Underlay))
	for i, u := range n.Underlay {
		underlay[i] = u.String()
	}
	var receives []string
	if n.ReceivesDirect {
		receives = append(receives, receivesDirect)
	}
	if n.ReceivesIPIP {
		receives = append(receives, receivesIPIP)
	}
	if n.ReceivesWireGuard {
		receives = append(receives, receivesWireGuard)
	}
	annotations := map[string]any{
		UnderlayAnnotation: strings.Join(underlay, ","), ReceivesAnnotation: nil, WireGuardAnnotation: nil,
	}
	if len(receives) > 0 {
		annotations[ReceivesAnnotation] = strings.Join(receives, ",")
	}
	if n.WireGuard != (model.WireGuard{}) {
		annotations[WireGuardAnnotation] = n.WireGuard.String()
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{},
		"status"); err != nil {
		return fmt.Errorf("publish the underlay of node %s: %w", n.Name, err)
	}
	return nil
}
