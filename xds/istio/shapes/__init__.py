"""Five ways to wire a pool into a proxy that istiod configures, as Kubernetes manifests.

    objects ─► choice ─► Wiring ─► build ─► Plan: steps of manifests, notes ─► removal

A shape patches what istiod writes, so that a cluster takes its endpoints from Weir and a route
asks Weir's picker. All else in the proxy stays istiod's.

    shape                     the cluster is                  the twin is        asked by
    gateway                   istiod's, patched               added              route
    gateway-own-cluster       ours, beside istiod's           istiod's original  route
    waypoint-inferencepool    istiod's, patched               added              Service
    waypoint-second-service   istiod's of a second Service    added              Service
    waypoint-own-cluster      ours, beside istiod's           istiod's original  Service

**The twin** is a cluster of the same EDS name over istiod's own ADS. A proxy that starts, or whose
cluster changes, while Weir is away begins with what istiod last said of that name instead of with
nothing. Where the cluster is ours, istiod's original stays in the proxy and is subscribed all the
same; where istiod's is patched, it no longer is, and the twin is a cluster that nobody routes to.

**Steps.** The first brings clusters and filters, which change nothing for any request; the second
sends requests there. Between them every proxy must have acknowledged our assignment. Removal goes
the other way. Objects are named for what they hold, not for the pool that was asked for, so that
two pools of one gateway print the same shared objects, and applying them twice is applying them
once.
"""
