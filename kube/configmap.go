package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"countersign/action"
)

// CreateImmutable makes an immutable ConfigMap whose name begins with prefix; the
// API server chooses the rest. It takes the verb create on configmaps and no other.
//
// This is not an agent's request, so it does not go through the gate: nobody calls
// it, no policy decides it, and the log says what was anchored, not that it was
// tried. It is sent in the server's own name, also where agents are impersonated.
func (c *Clusters) CreateImmutable(ctx context.Context, clusterName, namespace, prefix string, labels, data map[string]string) error {
	one, err := c.get(clusterName)
	if err != nil {
		return err
	}
	immutable := true
	body, err := action.Canonical(corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix, Labels: labels},
		Immutable:  &immutable,
		Data:       data,
	})
	if err != nil {
		return err
	}
	ctx = own(ctx)
	err = one.client.Post().AbsPath("/api/v1/namespaces", namespace, "configmaps").
		SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).Do(ctx).Error()
	return fault(ctx, err)
}

// ConfigMaps calls f with the name and the data of each ConfigMap of a namespace
// that has the label, in the order of their names. It takes the verb list. Like
// CreateImmutable it is not for agents: auditors read with it what was anchored, with a
// credential of their own.
func (c *Clusters) ConfigMaps(ctx context.Context, clusterName, namespace, label string, f func(name string, data map[string]string) error) error {
	one, err := c.get(clusterName)
	if err != nil {
		return err
	}
	ctx = own(ctx)
	for from := ""; ; {
		raw, err := one.reads.Get().AbsPath("/api/v1/namespaces", namespace, "configmaps").
			Param("labelSelector", label).Param("limit", "100").Param("continue", from).Do(ctx).Raw()
		if err != nil {
			return fault(ctx, err)
		}
		var page corev1.ConfigMapList
		if err := json.Unmarshal(raw, &page); err != nil {
			return fmt.Errorf("reading the API server's answer: %w", err)
		}
		for _, item := range page.Items {
			if err := f(item.Name, item.Data); err != nil {
				return err
			}
		}
		if from = page.Continue; from == "" {
			return nil
		}
	}
}
