package kube

import (
	"context"
	"encoding/json"
	"fmt"
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
	// ReceivesAnnotation is receivesDirect while the node accepts packets of other nodes' pods without a tunnel.
	ReceivesAnnotation = "weft.dev/receives"
)

const receivesDirect = "direct"

// trimAnnotations keeps those that Node reads.
func trimAnnotations(all map[string]string) map[string]string {
	var kept map[string]string
	for _, key := range []string{UnderlayAnnotation, ReceivesAnnotation} {
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
func Publish(ctx context.Context, client kubernetes.Interface, node string, underlay []model.Uplink, direct bool) error {
	words := make([]string, len(underlay))
	for i, u := range underlay {
		words[i] = u.String()
	}
	annotations := map[string]any{UnderlayAnnotation: strings.Join(words, ","), ReceivesAnnotation: nil}
	if direct {
		annotations[ReceivesAnnotation] = receivesDirect
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{},
		"status"); err != nil {
		return fmt.Errorf("publish the underlay of node %s: %w", node, err)
	}
	return nil
}
