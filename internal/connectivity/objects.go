package connectivity

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Names and labels in the test's namespace.
const (
	serverLabel = "server"
	clientLabel = "client"
	serviceName = "server"
	policyName  = "only-clients"
	container   = "weftctl"
	// Label is that of the namespaces.
	Label = "weft.dev/connectivity-test"
)

type object = map[string]any

// list are objects as kubectl create reads them.
func list(items ...object) []byte {
	text, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": items})
	if err != nil {
		panic(err) // of plain values
	}
	return text
}

// namespaceObject admits hostPorts, which the baseline standard for pods does not.
func namespaceObject(name string) object {
	return object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name, "labels": object{
		Label: "true", "pod-security.kubernetes.io/enforce": "privileged",
	}}}
}

// podObject is a server or a client on a node: both serve, so that a client has something to do.
func podObject(namespace, name, node, app, image string, hostPort int) object {
	port := object{"containerPort": Port, "protocol": "TCP"}
	if hostPort > 0 {
		port["hostPort"] = hostPort
	}
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"namespace": namespace, "name": name, "labels": object{"app": app}},
		"spec": object{
			"nodeName": node, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
			"tolerations": []object{{"operator": "Exists"}},
			"securityContext": object{
				"runAsNonRoot": true, "runAsUser": 65534, "runAsGroup": 65534, "seccompProfile": object{"type": "RuntimeDefault"},
			},
			"containers": []object{{
				"name": container, "image": image, "imagePullPolicy": "IfNotPresent",
				"command": []string{"/usr/local/bin/weftctl", "connectivity", "serve", fmt.Sprint(Port), fmt.Sprint(OtherPort)},
				"ports":   []object{port},
				"readinessProbe": object{
					"httpGet": object{"path": "/", "port": Port}, "periodSeconds": 1, "timeoutSeconds": 2,
				},
				"resources": object{"requests": object{"cpu": "10m", "memory": "16Mi"}},
				"securityContext": object{
					"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": object{"drop": []string{"ALL"}},
				},
			}},
		},
	}
}

// serviceObject leads to all servers, whatever their probes say: these have a test of their own.
func serviceObject(namespace string) object {
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": object{"namespace": namespace, "name": serviceName},
		"spec": object{
			"type": "NodePort", "selector": object{"app": serverLabel}, "publishNotReadyAddresses": true,
			"ipFamilyPolicy": "PreferDualStack",
			"ports": []object{
				{"name": "http", "protocol": "TCP", "port": Port}, {"name": "echo", "protocol": "UDP", "port": Port},
			},
		},
	}
}

// policyObject lets clients reach servers at Port by TCP, and nothing else.
func policyObject(namespace string) object {
	return object{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
		"metadata": object{"namespace": namespace, "name": policyName},
		"spec": object{
			"podSelector": object{"matchLabels": object{"app": serverLabel}}, "policyTypes": []string{"Ingress"},
			"ingress": []object{{
				"from":  []object{{"podSelector": object{"matchLabels": object{"app": clientLabel}}}},
				"ports": []object{{"protocol": "TCP", "port": Port}},
			}},
		},
	}
}

// pod is what the test reads of its pods.
type pod struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase  string `json:"phase"`
		PodIPs []struct {
			IP netip.Addr `json:"ip"`
		} `json:"podIPs"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		ContainerStatuses []struct {
			State struct {
				Waiting *struct {
					Reason  string `json:"reason"`
					Message string `json:"message"`
				} `json:"waiting"`
			} `json:"state"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

func (p pod) running() bool { return p.Status.Phase == "Running" && len(p.Status.PodIPs) > 0 }

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (p pod) String() string { return fmt.Sprintf("%s (%s)", p.Metadata.Name, p.Spec.NodeName) }

type service struct {
	Spec struct {
		ClusterIPs []netip.Addr `json:"clusterIPs"`
		Ports      []struct {
			Name     string `json:"name"`
			NodePort int    `json:"nodePort"`
		} `json:"ports"`
	} `json:"spec"`
}

// nodePort is the one that leads to HTTP.
func (s service) nodePort() int {
	for _, p := range s.Spec.Ports {
		if p.Name == "http" {
			return p.NodePort
		}
	}
	return 0
}

type event struct {
	Type    string `json:"type"`
	Message string `json:"message"`
	About   struct {
		Name string `json:"name"`
	} `json:"involvedObject"`
}
