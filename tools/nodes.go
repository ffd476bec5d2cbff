package tools

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"k8s.io/apimachinery/pkg/labels"

	"countersign/action"
)

var nodes = action.Resource{Version: "v1", Resource: "nodes", Kind: "Node"}

type nodeInput struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func cordonNode() *Tool {
	return setUnschedulable(Tool{
		Name:        "cordon_node",
		Title:       "Cordon a node",
		Description: "Keeps new pods off a node; those on it stay.",
	}, true, "cordoned")
}

func uncordonNode() *Tool {
	return setUnschedulable(Tool{
		Name:        "uncordon_node",
		Title:       "Uncordon a node",
		Description: "Lets new pods onto a node again.",
	}, nil, "uncordoned")
}

func setUnschedulable(t Tool, value any, done string) *Tool {
	t.Scopes = []action.Scope{{Verbs: []string{action.Patch}, Resource: "nodes"}}
	return define(t, limitReason, func(_ context.Context, _ Reader, _ string, in nodeInput) (Call, error) {
		return changeOne(unschedulable(in.Name, value), in.Reason)
	}, renderChange(done))
}

// unschedulable sets the field by which the scheduler leaves a node out; nil takes it away.
func unschedulable(node string, value any) action.Action {
	return mergePatch(nodes, "", node, map[string]any{"spec": map[string]any{"unschedulable": value}})
}

// maxGrace bounds a grace period, in seconds.
const maxGrace = 3600

type evictPodInput struct {
	Namespace          string `json:"namespace"`
	Name               string `json:"name"`
	GracePeriodSeconds *int64 `json:"grace_period_seconds,omitempty"`
	Reason             string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func evictPod() *Tool {
	return define(Tool{
		Name:        "evict_pod",
		Title:       "Evict a pod",
		Description: "Deletes a pod if its PodDisruptionBudgets allow.",
		Scopes:      []action.Scope{{Verbs: []string{action.Create}, Resource: "pods", Subresource: action.Eviction}},
	}, limitGrace, func(_ context.Context, _ Reader, _ string, in evictPodInput) (Call, error) {
		return changeOne(eviction(PodRef{Namespace: in.Namespace, Name: in.Name}, in.GracePeriodSeconds), in.Reason)
	}, renderNodeWork)
}

func limitGrace(s *jsonschema.Schema) {
	grace := s.Properties["grace_period_seconds"]
	grace.Types, grace.Type = nil, "integer"
	between(s, "grace_period_seconds", 0, maxGrace)
	limitReason(s)
}

func eviction(pod PodRef, grace *int64) action.Action {
	body := map[string]any{
		"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"name": pod.Name, "namespace": pod.Namespace},
	}
	if grace != nil {
		body["deleteOptions"] = map[string]any{"gracePeriodSeconds": *grace}
	}
	return action.Action{
		Verb: action.Create, Resource: pods, Subresource: action.Eviction, Namespace: pod.Namespace, Name: pod.Name, Body: body,
		Options: action.Options{GracePeriodSeconds: grace}, // where rules and approvers look
	}
}

type drainNodeInput struct {
	Name               string `json:"name"`
	IgnoreDaemonSets   *bool  `json:"ignore_daemonsets,omitempty" jsonschema:"default true"`
	DeleteEmptyDirData bool   `json:"delete_emptydir_data,omitempty"`
	Force              bool   `json:"force,omitempty" jsonschema:"also pods without a controller, which nothing starts again"`
	PodSelector        string `json:"pod_selector,omitempty" jsonschema:"only pods with these labels"`
	GracePeriodSeconds *int64 `json:"grace_period_seconds,omitempty"`
	Reason             string `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

// maxEvictions bounds what one drain does.
const maxEvictions = 250

func drainNode() *Tool {
	return define(Tool{
		Name:        "drain_node",
		Title:       "Drain a node",
		Description: "Cordons a node and evicts its pods within their PodDisruptionBudgets.",
		Scopes: []action.Scope{
			{Verbs: []string{action.Patch}, Resource: "nodes"},
			{Verbs: []string{action.Create}, Resource: "pods", Subresource: action.Eviction},
		},
		Reads: []action.Scope{
			{Verbs: []string{action.Get}, Resource: "nodes"},
			{Verbs: []string{action.List}, Resource: "pods"},
			{Verbs: []string{action.Get}, Resource: "daemonsets.apps"},
		},
	}, func(s *jsonschema.Schema) {
		ignore := s.Properties["ignore_daemonsets"]
		ignore.Types, ignore.Type = nil, "boolean"
		limitGrace(s)
	}, func(ctx context.Context, r Reader, cluster string, in drainNodeInput) (Call, error) {
		if _, err := labels.Parse(in.PodSelector); err != nil {
			return Call{}, BadArgument("pod_selector: %v", err)
		}
		if _, err := readOne(ctx, r, cluster, nodes, "", in.Name); err != nil { // else a node that is not there would have no pods
			return Call{}, err
		}
		// The approver sees each pod that would go, and the answer says which pods never go.
		evicted, err := r.Kubectl(ctx, cluster).Evictable(in.Name, DrainOptions{
			IgnoreDaemonSets: in.IgnoreDaemonSets == nil || *in.IgnoreDaemonSets, DeleteEmptyDirData: in.DeleteEmptyDirData,
			Force: in.Force, PodSelector: in.PodSelector,
		})
		if err != nil {
			return Call{}, drainError(err)
		}
		if len(evicted) > maxEvictions {
			return Call{}, BadArgument("%d pods would be evicted; %d is the most that one call takes: narrow with pod_selector", len(evicted), maxEvictions)
		}
		plan := action.Plan{Actions: []action.Action{unschedulable(in.Name, true)}}
		for _, pod := range evicted {
			plan.Actions = append(plan.Actions, eviction(pod, in.GracePeriodSeconds))
		}
		return Call{Plan: plan, Reason: in.Reason}, nil
	}, renderDrain)
}

// inTheseNames puts kubectl's flags into the names of our arguments.
var inTheseNames = strings.NewReplacer(
	"use --ignore-daemonsets to ignore", "ignore_daemonsets leaves them",
	"use --delete-emptydir-data to override", "delete_emptydir_data allows it; the data is lost",
	"use --force to override", "force allows it; nothing starts them again",
)

// maxRefused bounds what is said about pods that are not to be evicted, in bytes.
const maxRefused = 2000

// drainError says which argument allows what kubectl's code refuses.
func drainError(err error) error {
	var argument *ArgumentError
	if !errors.As(err, &argument) {
		return err
	}
	text := inTheseNames.Replace(argument.text)
	if len(text) > maxRefused {
		text = text[:max(strings.LastIndex(text[:maxRefused], ", "), 0)] + " and more"
	}
	return BadArgument("%s", text)
}

// renderNodeWork says in one line an Action what became of a node or a pod.
func renderNodeWork(responses []Response) (string, error) {
	lines := make([]string, len(responses))
	for i, r := range responses {
		if a := r.Action; a.Subresource == action.Eviction {
			lines[i] = fmt.Sprintf("pod %s/%s evicted", a.Namespace, a.Name)
		} else {
			lines[i] = fmt.Sprintf("node %s cordoned", a.Name)
		}
	}
	return strings.Join(lines, "\n"), nil
}

func renderDrain(responses []Response) (string, error) {
	text, err := renderNodeWork(responses)
	if len(responses) == 1 {
		text += "\nNo pod was to be evicted."
	}
	return text + "\nRunning pods of DaemonSets and static pods stay.", err
}
