package tools

import (
	"context"
	"fmt"
	"maps"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
)

var (
	cronJobs = action.Resource{Group: "batch", Version: "v1", Resource: "cronjobs", Kind: "CronJob", Namespaced: true}
	jobs     = action.Resource{Group: "batch", Version: "v1", Resource: "jobs", Kind: "Job", Namespaced: true}
)

func suspendCronJob() *Tool {
	return setSuspend(Tool{
		Name:        "suspend_cronjob",
		Title:       "Suspend a CronJob",
		Description: "Stops a CronJob from starting Jobs; running ones go on.",
	}, true, "suspended")
}

func resumeCronJob() *Tool {
	return setSuspend(Tool{
		Name:        "resume_cronjob",
		Title:       "Resume a CronJob",
		Description: "Lets a suspended CronJob start Jobs again.",
	}, false, "resumed")
}

func setSuspend(t Tool, suspend bool, done string) *Tool {
	t.Scopes = []action.Scope{{Verbs: []string{action.Patch}, Resource: "cronjobs.batch"}}
	return define(t, limitReason, func(_ context.Context, _ Reader, _ string, in namedInput) (Call, error) {
		body := map[string]any{"spec": map[string]any{"suspend": suspend}}
		return changeOne(mergePatch(cronJobs, in.Namespace, in.Name, body), in.Reason)
	}, renderChange(done))
}

func triggerCronJob() *Tool {
	return define(Tool{
		Name:        "trigger_cronjob",
		Title:       "Run a CronJob now",
		Description: "Starts a Job from a CronJob's template at once.",
		Scopes:      []action.Scope{{Verbs: []string{action.Create}, Resource: "jobs.batch"}},
		Reads:       []action.Scope{{Verbs: []string{action.Get}, Resource: "cronjobs.batch"}},
	}, limitReason, func(ctx context.Context, r Reader, cluster string, in namedInput) (Call, error) {
		object, err := readOne(ctx, r, cluster, cronJobs, in.Namespace, in.Name)
		if err != nil {
			return Call{}, err
		}
		job, err := manualJob(object)
		if err != nil {
			return Call{}, err
		}
		a := action.Action{
			Verb: action.Create, Resource: jobs, Namespace: in.Namespace, Body: job,
			Options: action.Options{FieldManager: FieldManager},
		}
		return Call{Plan: action.Plan{Actions: []action.Action{a}}, Reason: in.Reason}, nil
	}, renderChange("created"))
}

// manualJob is the Job that kubectl create job --from makes of a CronJob, but
// for its name, which the API server ends.
func manualJob(object []byte) (map[string]any, error) {
	var cronJob batchv1.CronJob
	var template struct { // the spec as it is: fields that this version does not know stay
		Spec struct {
			JobTemplate struct {
				Spec map[string]any `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(object, &cronJob); err != nil {
		return nil, fmt.Errorf("reading the CronJob: %w", err)
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(object, &template); err != nil {
		return nil, fmt.Errorf("reading the CronJob: %w", err)
	}
	annotations := map[string]string{"cronjob.kubernetes.io/instantiate": "manual"}
	maps.Copy(annotations, cronJob.Spec.JobTemplate.Annotations)
	metadata := map[string]any{
		"generateName": manualPrefix(cronJob.Name),
		"namespace":    cronJob.Namespace,
		"annotations":  textMap(annotations),
		"ownerReferences": []any{map[string]any{
			"apiVersion": "batch/v1", "kind": "CronJob", "name": cronJob.Name, "uid": string(cronJob.UID), "controller": true,
		}},
	}
	if labels := cronJob.Spec.JobTemplate.Labels; len(labels) > 0 {
		metadata["labels"] = textMap(labels)
	}
	return map[string]any{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template.Spec.JobTemplate.Spec}, nil
}

func textMap(texts map[string]string) map[string]any {
	values := make(map[string]any, len(texts))
	for key, text := range texts {
		values[key] = text
	}
	return values
}

// maxJobPrefix leaves room for the five characters that the API server adds: a
// Job's name becomes a label of its pods (RFC 1123 label, 63 characters).
const maxJobPrefix = 63 - 5

func manualPrefix(name string) string {
	const suffix = "-manual-"
	if len(name) > maxJobPrefix-len(suffix) {
		name = strings.TrimRight(name[:maxJobPrefix-len(suffix)], "-.") // a dash after a dot is no name
	}
	return name + suffix
}
