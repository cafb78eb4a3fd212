package kube

import "github.com/weft-cni/weft/pkg/policy"

// TrimPod and TrimmedPod let a benchmark keep what the informer keeps.
var TrimPod = trimPod

// TrimmedPod is the pod in what TrimPod gives.
func TrimmedPod(obj any) policy.Pod {
	p, ok := obj.(*pod)
	if !ok {
		panic("not a trimmed pod")
	}
	return p.pod
}
