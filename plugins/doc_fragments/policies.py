"""Documentation of the option policies, which several modules have."""

from __future__ import annotations


class ModuleDocFragment:
    """The option, without its place in the order of a module's work."""

    DOCUMENTATION = r"""
options:
  policies:
    description:
      - IAM policies, read and written with their etags. What is not named in them is never touched.
      - Several entries for one resource are written together.
    type: list
    elements: dict
    suboptions:
      resource:
        description: What the policy belongs to.
        type: dict
        required: true
        suboptions:
          kind:
            description: Kind of the resource.
            type: str
            required: true
            choices:
              - project
              - storage.buckets
              - secretmanager.secrets
              - iam.serviceAccounts
              - cloudkms.cryptoKeys
              - dns.managedZones
          name:
            description:
              - Name of the resource, the account ID of a service account.
              - A key goes by its full name,
                C(projects/<project>/locations/<location>/keyRings/<ring>/cryptoKeys/<key>).
              - Not used for the project.
            type: str
      bindings:
        description: Roles and their members.
        type: list
        elements: dict
        default: []
        suboptions:
          role:
            description: Role, C(roles/storage.objectUser) or C(projects/<project>/roles/<role>).
            type: str
            required: true
          members:
            description:
              - Members with their type, C(serviceAccount:<email>), C(user:<email>), C(group:<email>).
              - C(serviceAgent:<service>) is the account through which a service of Google's acts in the project, one of
                V(serviceAgent:compute.googleapis.com), V(serviceAgent:secretmanager.googleapis.com),
                V(serviceAgent:sqladmin.googleapis.com) and V(serviceAgent:storage.googleapis.com). It is made where
                it is not there yet.
            type: list
            elements: str
            required: true
          condition:
            description: Condition in Common Expression Language.
            type: dict
            suboptions:
              title:
                description: Short name of the condition.
                type: str
                required: true
              expression:
                description: The condition itself.
                type: str
                required: true
              description:
                description: What it is for.
                type: str
      mode:
        description:
          - With V(additive) members and kinds of access to log are added.
          - With V(exclusive) the named roles have exactly these members, and no members under other conditions; of the
            named services exactly these kinds of access are logged.
          - With V(absent) they are taken away, and it does not matter when the resource is not there.
        type: str
        choices: [additive, exclusive, absent]
        default: additive
      confined_members:
        description:
          - Members who have no other role on the resource, with no condition either, than what O(policies[].bindings)
            of the same entry gives them. Other members keep theirs.
        type: list
        elements: str
        default: []
      audit_configs:
        description: Audit logs per service, for the project only. Services that are not named are left alone.
        type: list
        elements: dict
        suboptions:
          service:
            description: Host name of the service, or V(allServices).
            type: str
            required: true
          log_types:
            description: Kinds of access to log; with V(exclusive), an empty list removes what the service has.
            type: list
            elements: str
            required: true
            choices: [ADMIN_READ, DATA_READ, DATA_WRITE]
"""
