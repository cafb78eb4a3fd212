package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Options say how nodes are looked at.
type Options struct {
	// Namespace is created, and deleted at the end.
	Namespace, Image, Datapath, Encryption, TunnelType string
	Nodes                                              []string
	// Within bounds the start of the pods, the pull of the image included.
	Within time.Duration
}

const (
	pause = 500 * time.Millisecond
	// cleanTime bounds the end, which happens after an interruption, too.
	cleanTime = time.Minute
)

type object = map[string]any

// Nodes runs `weftctl check` on each node, in a pod in the node's own network, which needs no CNI plugin. The pod reads
// the node's files and changes nothing. A node whose pod does not end is a finding.
func Nodes(ctx context.Context, k Kubectl, o Options) (list []Finding, err error) {
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		if _, cleaned := k.RunWith(clean, nil, "delete", "namespace", o.Namespace, "--ignore-not-found", "--wait=false"); err == nil {
			err = cleaned
		}
	}()
	// A namespace of its own goes as a whole; pods that mount the node's files need the privileged standard.
	objects := []object{{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": o.Namespace,
		"labels": object{"pod-security.kubernetes.io/enforce": "privileged"}}}}
	pods := make([]object, len(o.Nodes))
	for i, name := range o.Nodes {
		pods[i] = o.pod(fmt.Sprint("check-", i+1), name)
	}
	for _, some := range [][]object{objects, pods} {
		text, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": some})
		if err != nil {
			return nil, err
		}
		if _, err := k.RunWith(ctx, text, "create", "--filename=-"); err != nil {
			return nil, err
		}
	}
	phases, err := await(ctx, k, o)
	if err != nil {
		return nil, err
	}
	for i, name := range o.Nodes {
		pod := fmt.Sprint("check-", i+1)
		var found []Finding
		if !ended(phases[pod]) {
			found = []Finding{{Check: "pod on the node", Saw: fmt.Sprintf("it is %s after %s", phases[pod], o.Within),
				Do: "can the node pull the image " + o.Image + "? kubectl get events --all-namespaces says what fails"}}
		} else {
			out, err := k.RunWith(ctx, nil, "logs", "--namespace="+o.Namespace, pod)
			if err != nil {
				return nil, err
			}
			if err := json.Unmarshal(out, &found); err != nil {
				return nil, fmt.Errorf("read what the pod on node %s says: %w", name, err)
			}
		}
		for _, f := range found {
			f.Node = name
			list = append(list, f)
		}
	}
	return list, nil
}

func ended(phase string) bool { return phase == "Succeeded" || phase == "Failed" }

// await waits until all pods have ended, or the time is up, and returns their phases.
func await(ctx context.Context, k Kubectl, o Options) (map[string]string, error) {
	for deadline := time.Now().Add(o.Within); ; {
		pods, err := get[items[struct {
			named
			Status struct {
				Phase string `json:"phase"`
			} `json:"status"`
		}]](ctx, k, "get", "pods", "--namespace="+o.Namespace)
		if err != nil {
			return nil, err
		}
		phases, all := map[string]string{}, true
		for _, p := range pods.Items {
			phases[p.Metadata.Name] = p.Status.Phase
			all = all && ended(p.Status.Phase)
		}
		if all || time.Now().After(deadline) {
			return phases, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (o Options) pod(name, node string) object {
	return object{
		"apiVersion": "v1", "kind": "Pod", "metadata": object{"namespace": o.Namespace, "name": name},
		"spec": object{
			"nodeName": node, "hostNetwork": true, "restartPolicy": "Never", "automountServiceAccountToken": false,
			"tolerations": []object{{"operator": "Exists"}},
			"volumes":     []object{{"name": "node", "hostPath": object{"path": "/", "type": "Directory"}}},
			"containers": []object{{
				"name": "check", "image": o.Image, "imagePullPolicy": "IfNotPresent",
				"command": []string{"/usr/local/bin/weftctl", "check", "--root=/host", "--datapath=" + o.Datapath,
					"--encryption=" + o.Encryption, "--tunnel-type=" + o.TunnelType, "--output=json"},
				"volumeMounts": []object{{"name": "node", "mountPath": "/host", "readOnly": true, "mountPropagation": "HostToContainer"}},
				"securityContext": object{
					"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, // Of NET_ADMIN it uses that nft may list rules.
					"capabilities": object{"drop": []string{"ALL"}, "add": []string{"NET_ADMIN"}},
				},
			}},
		},
	}
}
