package tools

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

type rolloutStatusInput struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func getRolloutStatus() *Tool {
	scopes := scopesOf(action.Get, rollouts...)
	return define(Tool{
		Name:        "get_rollout_status",
		Title:       "Get the status of a rollout",
		Description: "Says whether a rollout is over and what it waits for.",
		Scopes:      scopes,
		Reads:       scopes,
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", rollouts...)
	}, func(ctx context.Context, r Reader, cluster string, in rolloutStatusInput) (Call, error) {
		resource := workloads[in.Kind]
		body, err := readOne(ctx, r, cluster, resource, in.Namespace, in.Name)
		if err != nil {
			return Call{}, err
		}
		var object map[string]any
		if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
			return Call{}, fmt.Errorf("reading the %s: %w", resource.Kind, err)
		}
		a := action.Action{Cluster: cluster, Verb: action.Get, Resource: resource, Namespace: in.Namespace, Name: in.Name}
		text, done, err := r.Kubectl(ctx, cluster).RolloutStatus(a, object)
		var argument *ArgumentError
		switch {
		case errors.As(err, &argument): // such as a rollout over its deadline: that is its status
			text = "The rollout has failed, or has none to follow: " + err.Error()
		case err != nil:
			return Call{}, err
		case done:
			text = "The rollout is over: " + text
		default:
			text = "The rollout goes on: " + text
		}
		if spec, _ := object["spec"].(map[string]any); spec["paused"] == true {
			text += "\nIt is paused: nothing more happens until resume_rollout."
		}
		return Call{Answer: audit.MaskText(text)}, nil
	}, nil)
}

type rolloutHistoryInput struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Revision  int64  `json:"revision,omitempty" jsonschema:"shows this one's pod template"`
}

func getRolloutHistory() *Tool {
	scopes := scopesOf(action.Get, rollouts...)
	return define(Tool{
		Name:        "get_rollout_history",
		Title:       "Get the history of a rollout",
		Description: "Lists the revisions of a workload.",
		Scopes:      scopes,
		Reads: append(scopesOf(action.Get, rollouts...),
			action.Scope{Verbs: []string{action.List}, Resource: "replicasets.apps"}, action.Scope{Verbs: []string{action.List}, Resource: "controllerrevisions.apps"}),
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", rollouts...)
		between(s, "revision", 1, 1<<31)
	}, func(ctx context.Context, r Reader, cluster string, in rolloutHistoryInput) (Call, error) {
		a := action.Action{Cluster: cluster, Verb: action.Get, Resource: workloads[in.Kind], Namespace: in.Namespace, Name: in.Name}
		if err := checkTarget(a); err != nil {
			return Call{}, err
		}
		text, err := r.Kubectl(ctx, cluster).RolloutHistory(a, in.Revision)
		var argument *ArgumentError
		if errors.As(err, &argument) && in.Revision != 0 {
			if all, err := r.Kubectl(ctx, cluster).RolloutHistory(a, 0); err == nil {
				return Call{}, BadArgument("%s %s has no revision %d: give revision one of %s", a.Resource.Kind, in.Name, in.Revision, strings.Join(revisions(all), ", "))
			}
		}
		return Call{Answer: cutEnd(audit.MaskText(text), "give revision")}, err
	}, nil)
}

// revisions are the numbers that the lines of kubectl rollout history begin with.
func revisions(history string) []string {
	var found []string
	for line := range strings.Lines(history) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.Trim(fields[0], "0123456789") == "" {
			found = append(found, fields[0])
		}
	}
	return found
}
